"""LIFL in the frameworks that people have: an adapter each; `references` has what they share."""

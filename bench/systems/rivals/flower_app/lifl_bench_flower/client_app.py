"""The ClientApp that a Flower App must name.  The benchmark's clients speak to the SuperLink themselves."""

from flwr.clientapp import ClientApp

app = ClientApp()

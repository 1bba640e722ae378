"""What a process of a node may do, and the ways to take the rest away for good.

Each of these is asked of the kernel by the process itself, and holds for all that it starts:

* `capabilities`: the rights of root, given up one and all, so that not even an exec brings one back;
* `account`: the rights that `lifld` has while it starts, and the user that it is from then on;
* `seccomp`: a filter of system calls, which refuses with EPERM;
* `landlock`: what of the file system may be read and written, which sockets and signals may be used;
* `signals`: which signals end it, and which do nothing;
* `box`: who gets what: the gateway, the zygote, a worker, and a worker that runs a user's own rule.

Nothing here needs a library.  What a machine does not have (a container without Landlock, an architecture whose system
calls are not known here) is left out and reported: `lifl doctor` says which process has what.
"""

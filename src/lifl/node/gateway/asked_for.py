"""What somebody is told who comes without what the gateway asks for."""

ASKS_FOR_CERTIFICATE = (
    "this node asks for a certificate: lifl enroll HOST:PORT --token-file F, with a token of `lifl token create`"
)
ASKS_FOR_COOKIE = (
    "this node takes clients of its own account alone: come by its state folder, or with a client of this version, as "
    "that account; `lifl up --listen` beyond loopback takes others, by certificates"
)
ASKS_FOR_HOST = (
    "folds are hosted by the node's own account, on its machine: by its state folder, or by its cookie; from elsewhere "
    "by an operator's certificate, of a node that asks for one"
)

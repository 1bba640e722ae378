"""What each code of a refusal means, and what to do: `lifl explain` and docs/refusals.md show it.

A code is stable, for programs (`core/errors.py::Refused`); the text beside it names the case at hand.
"""

from __future__ import annotations

from typing import NamedTuple


class Explained(NamedTuple):
    """A code's meaning, and the way to mend it."""

    means: str
    mend: str


UPDATES = {
    "round-over": ("The round ended before this could count.", "Nothing: the client waits for the next round."),
    "wrong-round": ("It is about a round that is not the one that runs.", "Wait for the next selection."),
    "not-selected": ("The round has not selected this client.", "Wait to be selected."),
    "evaluation-over": ("What is found of that model is not waited for any more.", "Go on with the next round."),
    "no-tensors": ("The round is one in which a model is evaluated.", "Call `report(metrics, weight)`."),
    "spoilt": (
        "The update was accepted, but cannot be aggregated.",
        "It is trained anew; the text says why.",
    ),
    "missing-tensor": (
        "The update lacks a tensor of the model.",
        "Send all, or set `job.trainable`.",
    ),
    "unknown-tensor": (
        "The update has a tensor that the model has not.",
        "Leave it out.",
    ),
    "wrong-dtype": ("A tensor is of another dtype than the model's, or of one that is not known.", "Convert it."),
    "wrong-shape": ("A tensor is of another shape than the model's, or of one that cannot be.", "Reshape it."),
    "wrong-order": ("The tensors are the model's, in another order.", "Send them in the order of the model."),
    "wrong-schema": ("The update's names, dtypes or shapes are not the model's.", "Compare it with the round's model."),
    "wrong-size": ("There are more or fewer bytes than the model's tensors have.", "Send exactly the model's tensors."),
    "not-finite": (
        "A value that is averaged is NaN or infinite.",
        "The text names tensor and element.",
    ),
    "bad-bool": ("A byte of a bool tensor is neither 0 nor 1.", "Write bools as such."),
    "bad-absent": ("The bits of what the update lacks are not those of the job's tensors.", "Send a bit per tensor."),
    "bad-weight": ("The weight is no positive, finite number within the limits.", "Give a number of examples."),
    "bad-metric": ("A metric's name or value is none.", "Give finite numbers under short, printable names."),
    "bad-tensor": (
        "What stands under that name is no tensor, or an update is no dict of tensors.",
        "Give arrays, or torch's tensors, by name.",
    ),
    "bad-file": (
        "The update's file is not there, or cannot be read as safetensors.",
        "Write it anew with safetensors.",
    ),
    "bad-model-file": (
        "That is no safetensors file, or one that is damaged.",
        "Write it anew with safetensors.",
    ),
    "too-large": ("It has more bytes than may be.", "Send less; the text says how much may be."),
    "damaged": ("Bytes were changed on their way.", "Send it again."),
    "upload-lost": ("Pieces of a model do not fit together.", "Send it again."),
    "quota": ("A limit of this job, client or node is reached.", "Come again later; see quotas in docs/operating.md."),
    "use-gateway": ("Another node of the cluster takes this update.", "Nothing: the client goes there by itself."),
    "replaced": ("Another connection has joined by this name.", "Give each client a name of its own."),
    "unknown-transfer": (
        "A connection came to carry a part of a body that its client does not have under way.",
        "Nothing: the client sends it again. Else somebody guesses; the audit log says who.",
    ),
    "bad-members": ("A partial names other members than it announces.", "Nothing: it is made again."),
}
JOBS = {
    "bad-config": (
        "A key of the file is wrong.",
        "The text names its path and what it may be.",
    ),
    "bad-schema": ("The model's tensors cannot be held.", "The text says which; shorten names or join tensors."),
    "schema-too-long": ("Names and shapes of the model take too many bytes.", "Shorten names, or join tensors."),
    "too-many-tensors": ("The models of all jobs have too many tensors together.", "Wait for a job to end."),
    "bad-trainable": ("`trainable` names no tensor, or is no pattern.", "Give patterns such as `*lora_*`."),
    "model-too-large": ("The model does not fit where it is to be.", "The text says what would fit."),
    "folder-in-use": ("Another job writes its checkpoints into this folder.", "Give this job a folder of its own."),
    "folder-missing": ("A folder is not there, or a node does not see it.", "Make it, or share it with all nodes."),
    "job-exists": ("A job of this name is here already.", "Choose another name, or end that one first."),
    "job-over": ("The job is over.", "`lifl resume JOB` lets it go on; or submit another one."),
    "job-runs": ("The job is not over, or not paused.", "What the text says: cancel, pause or edit it."),
    "job-paused": ("The job is paused already.", "`lifl resume JOB` lets it go on."),
    "job-ends": ("A worker is still at a file of a job that is over.", "See to its disk, and say it again."),
    "too-many-attempts": (
        "A round, or a fold, was tried as often as one can be.",
        "Submit another job that starts from this one's model (`model.from`); open a new fold.",
    ),
    "unknown-job": ("There is no job of this name.", "`lifl jobs` lists those that there are."),
    "not-kept": ("The model of that round did not stay (`checkpoint.keep`).", "Take one of those that are named."),
    "no-best": ("No round is the best one.", "Name a metric that clients send: `checkpoint.keep.best`."),
    "unknown-round": ("The job has no such round, or no model of it.", "`lifl status JOB` lists its rounds."),
    "unknown-metric": ("No committed round has a metric of that name.", "Take one that the text names."),
    "no-times": ("The round's receipt does not tell when what happened.", "Trace one that this version has run."),
    "no-tracker": ("Neither command nor job says which tracker.", "Give --to, or the job `metrics.tracker`."),
    "unreadable": ("The job's row or folder cannot be read.", "`lifl doctor --repair` says what it would set aside."),
    "too-many-jobs": ("So many jobs run as may run.", "Wait for one to end."),
    "not-a-job": ("Its name is a session's of folds, which is no job.", "Use the program that has opened it."),
    "no-node": ("No node has the labels of `placement.nodes`.", "`lifl up --label NAME=VALUE`, or ask for others."),
    "no-receipt": ("Of that round no updates are noted.", "Those of the last `history.keep.receipts` rounds are."),
    "bad-receipt": ("The receipt is not what a node has written.", "Write it anew: `lifl verify JOB ROUND --save`."),
    "missing-update": ("An update that the receipt names is not there.", "Ask its client for the file."),
    "other-update": ("A client's file is not the update that was counted.", "Ask its client for the right file."),
    "other-model": ("The round's model is not that of its updates.", "Keep both, and tell who runs the node."),
    "not-recomputed": ("The model cannot be made again from here.", "The text says what of the job is why."),
    "no-plan": ("The plan of that round is not kept.", "Only the last ones are."),
    "paused": ("The node cannot write its rows now.", "Mend what the text names; it goes on by itself."),
    "lost": ("A checkpoint is not there any more.", "The newest good one is used, and that is told."),
    "not-own": ("The file is not this job's checkpoint.", "Put back the job's own file."),
    "file-exists": ("The file is there already.", "Choose another name, or remove it."),
}
PEOPLE = {
    "not-listed": ("The job takes part with a list, and this client is not on it.", "Ask who submitted the job."),
    "no-certificate": ("This node takes clients with a certificate alone.", "`lifl enroll HOST:PORT --token-file F`."),
    "wrong-certificate": (
        "The certificate is another cluster's, expired or revoked.",
        "Enroll again by a token.",
    ),
    "wrong-origin": (
        "A page of another site comes with the certificate of the browser.",
        "Pages show a bearer token; docs/http.md.",
    ),
    "no-identity": ("There is no identity here for that node.", "`lifl enroll HOST:PORT --token-file F`."),
    "not-enrolled": ("The node has given no certificate.", "The text says why; ask for another token."),
    "not-allowed": ("This role may not do that.", "docs/security.md has the table of who may do what."),
    "not-own-name": ("The certificate is of another name.", "Take part by the name in the certificate."),
    "not-own-job": ("The certificate or token is for other jobs.", "Ask for one that is for this job."),
    "no-cookie": ("A node on loopback takes its own account's clients alone.", "Connect by its state folder."),
    "wrong-cookie": ("The cookie is not this node's.", "Connect by its state folder, as its user."),
    "unknown-token": ("There is no such token.", "`lifl token list` has those that there are; ask for a new one."),
    "token-over": ("The token is used up or expired.", "Ask for a new one: `lifl token create`."),
    "too-many-guesses": ("Too many wrong tokens came from there.", "Wait a minute, then give the right one."),
    "no-token-wanted": ("A bearer token is not taken here.", "Leave it out, or enroll."),
    "bad-token": ("That token cannot be made.", "The text names what is wrong with it."),
    "wrong-role": ("The token is for another role.", "Ask for one of the role that is wanted."),
    "wrong-name": ("That is no name, or not one the token allows.", "Give one that fits the token's pattern."),
    "name-missing": ("The token is for several names.", "Say which: `--name`."),
    "name-taken": ("Another key has a certificate of this name.", "Choose another name, or have that one revoked."),
    "wrong-authority": ("The node there is not the one that the token was made at.", "Compare the address."),
    "revoked": ("What this identity had was revoked.", "Ask for a new token."),
    "key-revoked": ("A certificate of this key was revoked.", "Enroll anew, with a new key."),
    "key-taken": ("The key is another identity's.", "Enroll anew, with a new key."),
    "key-too-old": ("The key is older than a key may be.", "Enroll anew, with a new key."),
    "bad-request": ("The request for a certificate cannot be read.", "Use `lifl enroll` of this release."),
    "not-secured": ("The node has no certificates.", "Start it on an address of the machine, or without this."),
    "own-certificate": ("That certificate is the one that asks.", "Revoke it from elsewhere."),
    "unknown-certificate": ("There is no such certificate.", "`lifl cert list` has those that were issued here."),
    "ambiguous": ("Several certificates are meant.", "Say the role with it, as the text does."),
    "bad-name": ("That is no name of a certificate.", "`lifl cert list` shows serials and names."),
    "too-many-tokens": ("So many tokens are kept as may be.", "`lifl token revoke` some."),
    "too-many-certificates": ("So many were issued to it lately as may be.", "Wait, or enroll by a new token."),
    "too-many-revocations": ("So many revocations are kept as may be.", "Wait until some have expired."),
    "too-many-roots": ("So many authorities are trusted as may be.", "Wait until an old one has expired."),
    "no-authority": ("The authority is another node's.", "Ask it there."),
    "not-the-authority": ("The authority is another node's.", "Ask it there; the text says where."),
    "authority-given": ("The authority was given by the operator.", "Give the new one, and start the node again."),
    "link-over": ("The link to the page is used up, or older than two minutes.", "`lifl web` makes another one."),
    "visit-over": ("This browser does not visit the page, or no longer.", "Open a link that `lifl web` makes."),
    "no-page": ("The node has no page.", "Start it with `lifl up --web`."),
    "no-roots": ("The node cannot read whom it trusts.", "Its log says more; `lifl doctor`."),
}
NODES = {
    "too-many-connections": ("So many connections are open as may be.", "Come again later; see `connections_max`."),
    "node-away": ("The node's gateway is being started again.", "Ask again in a moment."),
    "unknown-node": ("There is no such node.", "`lifl nodes` lists them."),
    "not-coordinator": ("Another node coordinates.", "Ask the one that the text names."),
    "coordinator": ("The node coordinates, and nobody can take its place.", "The text says what would be lost."),
    "no-other-node": ("No other node could coordinate.", "Start one first; `lifl nodes`."),
    "not-handed-over": ("No other node has taken its place.", "It takes part as before; try again."),
    "wrong-version": ("The two releases do not work together.", "The text says which side to upgrade."),
    "earlier-version": ("The node is of an earlier release.", "Upgrade it first."),
    "old-node": ("The node is of a release that knows no folds.", "Upgrade it."),
    "protocol": ("What came is no message of the protocol.", "Use a client of this release; see docs/protocol.md."),
    "wrong-port": ("That is the port of the gateway, or of the control channel.", "Give the other one."),
    "moving": ("A move between stores was not finished.", "Do it again first."),
    "up": ("A node is up that would write there.", "`lifl down` on it first."),
    "bad-backup": ("The file is no whole backup.", "Use another backup."),
    "damaged-backup": ("A part of the backup is not as it was written.", "Use another backup."),
    "torn-backup": ("The backup ends too early.", "Use another backup."),
    "not-utf8": ("A name or path is not UTF-8.", "Rename it."),
    "missing-library": ("The node has not what that takes.", "Install the extra that the text names, on the node."),
    "failed": ("The node could not do it.", "Its log says more."),
}
FOLDS = {
    "bad-expected": ("`expected` is no number of updates.", "Give 1 or more."),
    "bad-time": ("A time is none, or too long.", "Give seconds within the limit."),
    "no-room": ("Jobs and other folds have the arena's room.", "End one, or start the node with a larger arena."),
    "fold-full": ("The fold has taken as many updates as it can.", "Open it with a larger `expected`."),
    "no-update": ("The round has no update.", "The log says why none was taken."),
    "no-updates": ("The fold has no update to make a result of.", "Add some, or cancel it."),
    "not-host": ("The session is another connection's.", "Use the one that has opened it."),
    "no-state": ("The rule has no state that could be taken.", "Take it behind a result, of a rule that keeps one."),
    "wrong-state": ("The state is another rule's, or of a model with other tensors.", "Give the one of this rule."),
    "state-in-use": ("The rule's state is another fold's until that is over.", "Take its result first."),
    "ticket-expired": ("The ticket is too old.", "Ask the fold's host for another one."),
    "wrong-ticket": ("The ticket is for another fold, name or node.", "Ask the fold's host for another one."),
    "refused": ("The other side has not taken it.", "The text says why."),
    "not-taken": ("The other side has not taken it.", "The text says why."),
    "bad-params": ("An update of NVFlare has parameters that are none.", "Send arrays by name."),
    "bad-reply": ("A reply of Flower has not the one record that is expected.", "Reply as the strategy asks."),
    "bad-rounds": (
        "`rounds_per_message` is no number of rounds, or does not go with `send_ahead`.",
        "Give 1 or more, or one of the two.",
    ),
    "bad-strategy": ("That strategy cannot be wrapped.", "docs/flower.md lists those that can."),
}
CODES = {code: Explained(*both) for part in (UPDATES, JOBS, PEOPLE, NODES, FOLDS) for code, both in part.items()}
TITLES = {
    "Updates and rounds": UPDATES,
    "Jobs and models": JOBS,
    "Who may do what": PEOPLE,
    "Nodes": NODES,
    "Folds, Flower, NVFlare": FOLDS,
}

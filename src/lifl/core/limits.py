"""Every limit: what may come from outside, and what may grow.  Sizes are in bytes as packed."""

from __future__ import annotations

NAME_CHARS_MAX = 64
METRICS_MAX = 16
METRIC_NAME_CHARS_MAX = 32
CONTRIBUTION_BYTES_MAX = 1024
"""A client's name, its weight and its metrics: 16 metrics with long names fit in ASCII, and not in every script."""
WEIGHT_MIN = 1e-300
WEIGHT_MAX = 1e300
"""Of one update.  Together, those of a round are far from the end of float64, and the share of each is a number."""
WHOLE_WEIGHT_MAX = 2.0**39
"""Of one update where sums are reproducible: a whole number, as is the sum of a round's, in float64."""
TEXT_CHARS_MAX = 4096
WORD_CHARS_MAX = 64
"""A code, a status, a role."""
SECRET_CHARS_MAX = 64
IDENTITY_URI_CHARS_MAX = 300
"""An identity in a certificate: cluster, role and name, which is percent-encoded."""
WHO_CHARS_MAX = 128
"""Who is at the other end of a connection: a role and a name, an account of this machine, or an address."""
KNOWN_WORDS_MAX = 16
KNOWN_WORD_CHARS_MAX = 32
"""Words with which a peer or a client says what it knows beyond version 1; the first nodes took 8 of them."""
FIELD_CHARS_MAX = 300
"""The part of a request that a refusal names: ``tensors.`` and a tensor's name, or a gateway's address."""
ADDRESS_CHARS_MAX = 280
PATH_CHARS_MAX = 4096
CONFIG_PATH_CHARS_MAX = 4000
"""A path that a configuration names: the files in a folder have longer ones."""
STATES_MAX = 64
"""State vectors of a rule."""
JOBS_MAX = 256
"""Jobs of one cluster that are not over."""
PRIORITY_MAX = 100
"""Of a job; 1 is the lowest."""
EDITS_MAX = 32
"""Keys that one `lifl edit` changes."""
GATEWAYS_TOLD_MAX = 16
"""Other nodes' gateways that a client is told, and keeps."""
BYTES_PER_S_MAX = 1_000_000_000_000
"""A limit on bytes per second that is no limit for any machine."""
REQUESTS_PER_S_MAX = 1_000_000
OBJECTS_MAX = 16_384
"""Objects of an arena at a time."""
SEGMENTS_ENDED_MAX = 16
"""Segments of an arena that hold pages of jobs that are over; beyond it the smallest one's go to the next job."""
NODES_MAX = 1_000
"""Nodes that one coordinator keeps, those that are gone included; when it is full the one longest gone is forgotten."""
NEWS_MAX = 64
"""Members in one PeerMembers."""
GREETING_BYTES_MAX = 4 * 1024
"""The frame of a PeerHello, and of its answer."""
REFUSAL_CHARS_MAX = 1_000
PROXY_ANSWER_BYTES_MAX = 16 * 1024
"""The head of an HTTP proxy's answer to CONNECT."""
TREE_LINES_MAX = 128
"""Tasks in one Heartbeat; what is beyond it is not shown."""
TREE_LINE_BYTES_MAX = 400
ROUNDS_MAX = 1_000_000
CLIENTS_PER_ROUND_MAX = 10_000
FAN_IN_MAX = 64
CONFIG_FILE_BYTES_MAX = 1024 * 1024
"""A TOML file: several times what all keys take at their limits."""
RULE_CHARS_MAX = 256
SIMULATED_CLIENTS_MAX = 10_000
"""Of `lifl simulate`: each has a thread and a connection."""
DEADLINE_S_MAX = 30 * 24 * 3600.0
RETRY_AFTER_S_MAX = 60.0
"""A node that is busy has a client ask again after so long at most."""
HOST_GRACE_S = 30.0
"""How long a session of folds waits for its host to come back, when its connection has ended without a word."""
SESSION_ROOM_S = 10.0
"""How long a session of folds waits for the arena's room that jobs and other sessions have; then it is refused."""
REVOKED_TICKETS_MAX = 6_000
"""Tickets of one session of folds that are revoked at a time, those for folds that are over left out."""
FOLD_MORE_MIN = 32
"""Updates that a fold takes beyond those expected, at least: it takes twice as many as expected in any case."""
TASK_DEADLINE_S = 300.0
"""How long a task that has all its inputs may take where the job does not say (`aggregation.task_deadline_s`)."""
ARENA_BYTES_MIN = 1 << 24
ARENA_BYTES_MAX = 1 << 44
WORKERS_MAX = 1_000
PID_MAX = 1 << 22
"""The kernel's own limit of process numbers, on 64-bit machines."""
CAPACITY_MAX = 1e6
CONNECTIONS_MAX = 65_536
STATE_DIR_BYTES_MAX = 90
"""A Unix socket's address holds 107 bytes, and the longest name in the state folder is put behind it."""
SOCKET_PATH_BYTES_MAX = 107
PORT_MAX = 65_535
OPTIONS_DEPTH_MAX = 8
OPTIONS_CHANGED_BYTES_MAX = 256
"""Of them what a round, or a client's properties, make of them: it goes to each client with its selection."""
OPTIONS_BY_LABEL_MAX = 32
"""Groups of clients with options of their own."""
CONDITION_CHARS_MAX = 1024
CONDITION_TERMS_MAX = 256
"""Names, values and operators of a condition on clients (`selection.where`)."""
STOP_CHARS_MAX = 512
STOP_RULES_MAX = 8
"""Of what ends a job early (`job.stop`)."""
CALL_BYTES_MAX = 4 * 1024 * 1024
"""What a user's function is given that selects, or says when to stop: clients beyond it are not offered, and the oldest
rounds are left out."""
CALL_ANSWER_BYTES_MAX = 1024 * 1024
"""What it returns: a number for each client that a round can select fits."""
CALL_S = 60.0
"""How long it may take; then its worker is killed."""
STOP_HISTORY_ROUNDS_MAX = 1_000
"""Rounds of which a function is told the metrics that says when to stop, the last ones."""
LOSS_ROUNDS_MAX = 256
"""Committed rounds from which clients' last losses are read when a job goes on in another life of the coordinator."""
LABELS_MAX = 16
LABEL_CHARS_MAX = 32
LABEL_VALUE_CHARS_MAX = 64
"""Labels that a client says of itself, or that a node has."""
PATTERNS_MAX = 256
"""Patterns of tensors' names in one key of a job's config."""
PATTERN_CHARS_MAX = 256
CLIENTS_LISTED_MAX = 16_384
"""Names and patterns of clients that may take part in a job; `PATTERNS_MAX` of them are patterns."""
FORMAT_FILE_BYTES_MAX = 4096
"""What says the format of a state folder."""
CLIENTS_FILE_BYTES_MAX = 2 * 1024 * 1024
"""A file of them (`selection.clients_file`): a line for each, and some for comments."""
OPTIONS_BYTES_MAX = 64 * 1024
"""The options of a rule, and those of a job's clients: each goes to whoever needs it once, not with each update."""

FRAME_BYTES_MAX = 8 * 1024 * 1024
"""A frame of any channel; the largest carry the schema of a model with tens of thousands of tensors."""
SCHEMA_BYTES_MAX = 13 * 512 * 1024
"""The names, dtypes and shapes of a model's tensors: what is beside them in a frame has the rest of it."""
SCHEMAS_BYTES_MAX = 24 * 1024 * 1024
"""The schemas of all jobs that run: a new gateway, and a node that joins, is told all of them at once."""
MEMBERS_PER_FRAME_MAX = 4_096
STORED_PER_FRAME_MAX = 2_048
"""Clients with their metrics in one frame between nodes (of `CONTRIBUTION_BYTES_MAX` each): more go in pages."""
PAGES_MAX = 64
INVENTORY_BYTES_MAX = 32 * 1024 * 1024
"""The contributions in all pages of one Inventory: what is beyond counts as lost, and is asked for again."""
SUSPECTS_MAX = 64
"""Clients that a failed task names because their updates cannot be computed: of more of them, all train again."""
COST_LINES_MAX = 2_048
"""Tasks of one branch that its cost, and of one round that its receipt, has a line for."""
ROUND_METRICS_MAX = 256
"""Names of metrics that a round's means are taken of: those that most of its clients sent."""
CLIENT_METRICS_MAX = 256
"""Clients of a round whose own metrics its receipt keeps, where the job says so: the first ones by name."""
REASON_BYTES_MAX = 400
"""What all clients of a round are told of the reason why it ended."""
OLD_MODELS_PARTS = 16
"""One of so many parts of the arena (but one model at the least) is what old models of a job may take that slow clients
still read; who reads beyond that is sent away, after `OLD_MODEL_GRACE_S`, or at once when something waits for room."""
OLD_MODEL_GRACE_S = 2.0
LINK_WAITING_BYTES_MAX = 64 * 1024 * 1024
"""What may wait for a slow peer of a link: a few of the largest frames, or what one event says to all clients."""
TENSORS_MAX = 65_536
TRAINABLE_TENSORS_MAX = 2_048
"""Tensors of a job whose updates may lack some of them (`job.trainable`): adapters of all linear layers of the largest
models are fewer."""
TRAINABLE_PATTERNS_MAX = 32
"""Patterns in `job.trainable`: they go to each client of the job."""
ABSENT_BYTES_MAX = TRAINABLE_TENSORS_MAX // 8
"""Which of them an update lacks, a bit for each: kept with the client's name, weight and metrics."""
DIMENSIONS_MAX = 32
TENSOR_NAME_CHARS_MAX = 256
DTYPE_CHARS_MAX = 16
DIGEST_BYTES = 32
JOIN_HELD_S = 1.0
"""So long a client waits at a node whose coordinator is away for one; then it is sent to another node."""
COPY_S = 60.0
COPY_BYTES_PER_S = 1e7
"""A node may take so long for a copy of a model, and a second more for so many of its bytes; then another is asked."""
COPY_RETRY_S = 5.0
"""How long a node is not asked for a copy that could not make one."""
COPIES_MAX = 16
"""Other nodes that keep a copy of each committed model."""
REMOVED_COPIES_MAX = 256
"""Jobs that were forgotten with their models, the last ones, whose copies on nodes that come back later still go."""
CHECKPOINT_FILES_MAX = 8
"""Files of one checkpoint of which a row has the digests: the model's and the rule states' are two."""
CHECKSUM_CHARS_MAX = 64
COUNT_MAX = (1 << 63) - 1
"""Any count, number or size that has no limit of its own: what the database holds, too."""
INCARNATION_MAX = 1 << 53
"""Lives of a node's daemon: each next one still has a number."""
REAL_MAX = 1.7976931348623157e308
"""The largest finite double."""
RATE_PER_S_MAX = 1e9
"""Updates per second at one node."""
BRANCH_UPDATES_MAX = 65_536
"""Updates of one branch: more than one round can select."""
BRANCHES_MAX = 4_096
"""Branches of one round: of each node one, and those that took the places of others."""
COST_BYTES_MAX = 1 << 50
COST_S_MAX = 1e12
"""Of one branch: the sums over `BRANCHES_MAX` still are numbers that can be written."""

RELIABILITY_CLIENTS_MAX = 16_384
"""Clients of one job of which it is kept how they kept their word: those that were selected last."""
ROUNDS_REMEMBERED = 16
"""Committed rounds whose members are kept in memory, to answer clients that come back late."""
KEEP_LAST = ROUNDS_REMEMBERED
"""Committed models that stay where a job says nothing else: so far back may a restart go for one that is whole."""
HISTORY_ROUNDS = 100_000
"""Rounds of a job whose rows stay where it says nothing else: some hundred bytes each."""
HISTORY_RECEIPTS = 1_000
"""Those of them that have their receipts and clients, too: some kilobytes each."""
JOBS_REMEMBERED = 64
"""Jobs that are over whose clients still get an answer: the last ones, which are kept in memory."""
JOBS_KEPT = 1_000
"""Jobs that are over whose rows stay, and `lifl jobs` shows, where a node's config says nothing else (`jobs_kept`)."""
JOBS_KEPT_MAX = 100_000
TRIM_ROUNDS = 64
"""After so many commits what is beyond these is forgotten, so that few commits have to wait for it."""
UPLOAD_URL_CHARS_MAX = 1024
"""Where models go that are to be stored elsewhere, too (`checkpoint.upload`)."""
UPLOADS_WAITING_MAX = 8
"""Models of one job that wait to be sent there, and stay meanwhile; beyond it the oldest is given up."""
UPLOAD_RETRY_S = 1.0
"""After how long one that was not taken is sent again; each further wait is twice as long."""
UPLOAD_RETRY_S_MAX = 300.0
KEPT_RANGES_MAX = 64
"""Ranges of rounds in an answer that says which models are there; what is beyond it is left out in the middle."""

# ---- disks: when what could not be written is tried again ------------------------------------------------------------

FILE_RETRY_S = 1.0
"""After how long a file that could not be read or written is tried again; each further wait is twice as long."""
FILE_RETRY_S_MAX = 5.0
"""A job whose disk has room again goes on within this time."""
JOURNAL_FREE_BYTES_MIN = 64 * 1024 * 1024
"""Accepted updates are written to the disk as long as so much stays free there: the database must not be held up."""
STORE_ENDPOINTS_MAX = 16
"""Members of etcd that a node is told."""
STORE_NAME_CHARS_MAX = 64
STORE_URL_CHARS_MAX = 8 * 1024
STORE_ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""One answer of etcd: a page of keys, each of at most `STORE_VALUE_BYTES_MAX`."""
STORE_ROW_BYTES_MAX = 64 * 1024 * 1024
"""One row of etcd, unpacked: a job with the longest schema, or a round with all its members and tasks, is less."""
STORE_VALUE_BYTES_MAX = 1024 * 1024
"""One value in etcd, which takes requests of 1.5 MiB; a row that takes more, compressed, is stored in parts."""
DATABASE_RETRY_S = 0.5
"""The same for a row that the database did not take."""
DATABASE_RETRY_S_MAX = 5.0
PAUSE_EVENTS_MAX = 100_000
"""Events that wait while the database takes no rows: beyond it the node stops, and `lifl up` goes on from its arena."""

# ---- a gateway's connection: how long, how many bytes, how many at a time -------------------------------------------

HELLO_S = 10.0
"""A new connection says Hello within this time."""
FRAME_S = 60.0
"""A frame that has begun is complete within this time."""
BODY_STALL_S = 60.0
"""A body (either way) moves at least `body_moves.STALL_BYTES` in this time, or the connection ends."""
REPLACED_STALL_S = 2.0
"""The same for a client that has come over another connection meanwhile."""
PEER_STALL_S = 10.0
"""The same between nodes, which are nearer to each other; and what the peer's TCP may leave unacknowledged."""
HELLO_BYTES_MAX = 4096
HANDSHAKES_PER_S = 100
"""TLS handshakes that one source (an address, or the network of one of version 6) may make at a door in the long run:
some hundredths of a core."""
HANDSHAKES_AT_ONCE = 2000
"""And so many at once: all clients of a site behind one address, that come again when a node has been away."""
HANDSHAKE_WAIT_S = 5.0
"""One beyond these waits for its turn, or is turned away when that would take longer."""
HANDSHAKE_SOURCES_MAX = 10_000
"""Sources whose handshakes are counted at a door; one beyond takes the place of the one that came first."""
UNGREETED_S = 1.0
"""A connection that has not said who it is after this time gives way to another one, where there are too many."""
PINGS_PER_S_MAX = 500
"""Clients are asked to wait longer with their questions when there would be more: some hundredths of a core."""
SMALL_FRAME_BYTES = 64 * 1024
"""Longer frames are schemas of clients that know no digests."""
LARGE_FRAMES_BYTES_MAX = 64 * 1024 * 1024
"""What has come of all longer frames that are not complete: beyond it who holds most for longest is disconnected."""
REQUESTS_PER_S = 20
"""Requests of one client, beside what its updates allow, when the node says nothing else; who sends more is slowed."""
REQUESTS_BURST = 40
"""So many at once, or those of two seconds if that is more."""
REQUESTS_OF_AN_UPDATE = 4
"""What an update that is taken gives back: the requests of a round, and some."""
STREAMS_MAX = 8
SMALL_BODY_BYTES = 256 * 1024
"""Bodies up to here are received and checked (tens of microseconds), and sent, by the event loop's thread itself."""
SOON_S = 1.0
"""A small body that takes longer is left to the movers, which see whether it stalls."""
WAITING_BYTES_MAX = 2 * FRAME_BYTES_MAX
"""What may wait for one client that reads slowly."""
ALL_WAITING_BYTES_MAX = 128 * 1024 * 1024
"""What may wait for all clients of a gateway; beyond it whom most waits for is disconnected."""
LINGER_S = 1.0
"""How long a refused connection is kept so that the peer can read why."""
KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3
UNACKNOWLEDGED_S = 60.0
"""A peer that acknowledges nothing for so long is gone."""
TURNED_AWAY_MAX = 32
"""Connections beyond the limit that are told so at a time; more are closed without a word."""

# ---- HTTP (node/http) ------------------------------------------------------------------------------------------------

HTTP_HEAD_BYTES_MAX = 16 * 1024
"""A request's line and headers together."""
HTTP_HEAD_S = 10.0
"""They are complete within this time of their first byte, the first ones of the connection."""
HTTP_KEPT_S = 120.0
"""A connection that asks nothing for so long is closed."""
HTTP_CONNECTIONS_MAX = 1024
HTTP_SESSIONS_MAX = 1024
"""Clients (a name in a job) that take part by HTTP; each is a connection of the gateway besides, and counts there."""
HTTP_WAIT_S_MAX = 60.0
"""What is waited for (a selection, an outcome) is waited for so long at most, then asked for again."""
HTTP_AWAY_S = 300.0
"""A client that has asked nothing for so long takes part no longer, until it asks again."""
HTTP_RESUME_S = 120.0
"""An update that was cut off keeps its slot for so long, for its rest to come."""
HTTP_ROUNDS_KEPT = 64
"""Of so many rounds a session of HTTP knows what became of the client's updates."""
HTTP_LINGER_S = 10.0
"""What is still sent of a body that is not wanted is read for so long, so that the answer is read."""
HTTP_DATA_BYTES = 1 << 30
"""Memory of the HTTP door's own."""

# ---- the page in a browser (node/http/page.py, node/pages.py) --------------------------------------------------------

WEB_LINK_S = 120.0
"""A link to the page is good for so long, and once."""
WEB_LINKS_MAX = 16
"""Links that nobody has opened yet; the oldest of who has most of them gives way to another."""
WEB_VISIT_S = 12 * 3600.0
"""A visit of the page lasts so long at most."""
WEB_VISITS_MAX = 16
"""Visits at a time; the oldest of who has most of them gives way to another."""
WEB_WATCHERS_MAX = 16
"""Pages that are told at a time what happens."""
WEB_STALL_S = 10.0
"""A page that reads nothing for so long is told nothing more."""
WEB_ASKS_MAX = 16
"""Requests of pages that are answered at a time; those beyond are told to come again."""
WEB_ASK_BYTES_MAX = 64 * 1024
"""A page's request."""
WEB_SUBMIT_BYTES_MAX = 2 * CONFIG_FILE_BYTES_MAX
"""A page's request with a job's file in it."""
WEB_MOVES_MAX = 8
"""Of pages, files of jobs, pieces of models that come, and models that go, at a time; those beyond are told to come
again."""
AUDIT_PAGE_LINES = 200
"""Lines of the audit log that are told at a time to who is elsewhere."""
LOG_SHOWN_BYTES = 128 * 1024
"""The end of the log that is shown to who is elsewhere."""

# ---- the other doors -------------------------------------------------------------------------------------------------

GREETING_S = 5.0
"""A PeerHello is complete within this time, and so is a node's whole attempt at one address of another."""
GREETINGS_MAX = 256
"""Connections of a control port whose PeerHello is not complete; those beyond are told to come again."""
GREETINGS_PER_SOURCE_MAX = 64
"""Those of one address."""
CLI_CONNECTIONS_MAX = 64
"""Command lines that one daemon serves at a time."""
CLI_FOLLOWERS_MAX = 48
"""Those of them that watch a job: the others are for who wants to do something."""
CLI_IDLE_S = 10.0
"""A command line that has asked nothing for so long gives way to another, where there are too many."""
CLI_REMOTE_MAX = 32
"""Those of other machines: the others are the owner's."""
CLI_OF_ONE_MAX = 8
"""Those of them that one operator or reader has, so that none of them takes all places."""
JOB_SERIES_MAX = 64
"""Jobs of which `/metrics` tells one by one, those that are not over first."""
JOB_METRIC_SERIES_MAX = 16
"""Metrics of a job whose last values `/metrics` tells: the first ones by name."""
TRACKERS_MAX = 8
"""Processes of a node that tell jobs' metrics to trackers, one for each such job: more of them wait for a place."""
MODEL_PIECE_BYTES = 1024 * 1024
"""A piece of a model that goes to another machine's command line, or comes from it."""
UPLOADS_MAX = 4
"""Models that come from elsewhere at a time."""
UPLOADED_MODELS_MAX = 16
"""Those that are kept though no job needs them."""
PAGE_BYTES_MAX = 4 * 1024 * 1024
"""Lines in one answer to the command line: half of a frame, for a job's config and its running round stand beside."""
PLAN_BYTES_MAX = PAGE_BYTES_MAX
"""A decision of the planner as the database keeps it, unpacked."""
UNIX_S_MAX = 253_402_300_799.0
"""A time in a row of the database: the end of the year 9999."""
NOW_TASKS_MAX = 2_048
"""Tasks of a running round that one answer has a line for, those of the coordinator's own node first."""
NAMED_TASKS_MAX = 128
"""Of a tree with more tasks it is not told which clients' updates are where."""
NAMES_SHOWN_MAX = 16
"""Clients that are named of one task, or of those whose updates are on their way."""
STATUS_ROUNDS = 100
"""Rounds that `lifl status --json` shows when it is not told how many."""
MODEL_HEADER_BYTES_MAX = 32 * 1024 * 1024
"""The header of a safetensors file."""

# ---- the audit log ---------------------------------------------------------------------------------------------------

AUDIT_FILE_BYTES_MAX = 4 * 1024 * 1024
"""A file of the log that is longer is followed by the next one."""
AUDIT_FILES_MAX = 16
"""Files of the log that are kept, the newest ones."""
AUDIT_LINE_BYTES_MAX = 16 * 1024
AUDIT_TEXT_CHARS_MAX = 300
"""Of one field of a line; a character takes at most 6 bytes there."""
AUDIT_FIELDS_MAX = 6
"""What one line tells beside who, when, what and a text."""
AUDIT_WAITING_MAX = 10_000
"""Notes that wait for the disk; those beyond are counted, and a line says how many."""
AUDIT_WINDOW_S = 300.0
"""How long equal notes are counted before that is written."""
AUDIT_REFUSALS_MAX = 64
"""Refusals that differ, within that time: those beyond are counted together."""
AUDIT_JOINS_MAX = 10_000
"""The same for clients that ask to take part: as many as a round can have."""
AUDIT_RETRY_S = 1.0
"""After how long what the disk did not take is tried again; each further wait is twice as long."""
AUDIT_RETRY_S_MAX = 30.0
AUDIT_SHOWN = 50
"""Lines that `lifl audit` shows when it is not told how many."""

# ---- backups (`node/backup/archive.py`) ------------------------------------------------------------------------------

BACKUP_FILES_MAX = 200_000
"""Files of one backup: models of so many rounds."""
BACKUP_LIST_BYTES_MAX = 64 * 1024 * 1024
"""What lists them."""
BACKUP_SMALL_BYTES_MAX = 1024 * 1024
"""A key, a certificate, what says the format or the owner of a folder."""

# ---- who may come in -------------------------------------------------------------------------------------------------

TOKENS_MAX = 1_000
"""Tokens of one cluster that are neither used up, expired nor revoked."""
BEARERS_MAX = 1_000
"""Bearer tokens of one cluster that have not expired, revoked ones among them: every node keeps their digests."""
TOKEN_USES_MAX = 10_000
TOKEN_TTL_S_MAX = 30 * 24 * 3600.0
TOKEN_CHARS_MAX = 256
"""The one line of a token; a file with one has no more than that, and blanks."""
JOBS_OF_TOKEN_MAX = 16
"""Jobs that a client's token, and so its certificate, is limited to."""
CERTIFICATES_MAX = 65_536
"""Certificates of one cluster that have not expired: 10,000 clients have two each around a renewal."""
SERIAL_DIGITS_MIN = 8
"""The beginning of a serial that stands for the whole one, where no other begins so: 2^32 times as rare as they are."""
UNASKED_PER_DAY_MAX = 16
"""Certificates of one name within a day, beyond which it gets none but by a use of a token: nobody renews so often, and
who does so without end would take all places."""
REVOKED_MAX = 4_096
"""Revocations that every node keeps, one for a name or a certificate; each ends with the last that it is about."""
REQUEST_BYTES_MAX = 1_024
"""A certificate signing request (DER): with all that goes with it it fits a greeting."""
CHAIN_BYTES_MAX = 48 * 1024
"""Certificates (PEM) that are told to who joins."""
ENROLLED_BYTES_MAX = 128 * 1024
"""The frame with which who joins is told its certificate and those that it is to trust."""
HOSTS_MAX = 16
"""Names and addresses of a node in its certificate."""
HOST_CHARS_MAX = 128
CERTIFICATE_LIFETIME_S = 30 * 24 * 3600.0
CLOCK_SKEW_S = 300.0
"""How far a clock may be behind that of who issues certificates: so much earlier they begin."""
KEY_AGE_S_MAX = 90 * 24 * 3600.0
"""For so long may one key be certified again and again."""
GUESSES_MAX = 10
"""Wrong tokens from one source (an IPv4 address, an IPv6 network of 64 bits) within `GUESS_WINDOW_S` that are answered
and noted one by one; a right one is taken all the same."""
GUESS_WINDOW_S = 60.0
GUESS_SOURCES_MAX = 4_096
"""Sources of wrong tokens that are remembered, those of the latest."""

# ---- the boxes of processes (`confine/box.py`) -----------------------------------------------------------------------

GATEWAY_DATA_BYTES = 1 << 30
"""Memory of a gateway's own, beside the arena: what it holds for all connections together, several times."""
GATEWAY_CONNECTION_BYTES = 128 * 1024
"""And for each connection that it may have: a small frame that is not complete, and its books."""
WORKER_DATA_BYTES_MIN = 256 * 1024 * 1024
"""Memory of a worker's own: its share of what the arena leaves of the machine's (or container's), at least this."""
WORKER_DESCRIPTORS_MAX = 256
"""Of a worker: its link, its port with connections to other workers, and what its rule opens."""
RECURSION_MAX = 10_000
"""Calls within each other of a user's rule, whatever recursion limit it sets."""

# ---- the bundle for support (`lifl support-bundle`) ------------------------------------------------------------------

BUNDLE_FILE_BYTES_MAX = 4 << 20
"""Of each file of the log, its end."""
BUNDLE_ROWS_MAX = 10_000
"""Files of the state folder that are listed."""

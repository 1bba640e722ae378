/*
 * The routing program of a node: an SK_MSG program on a SOCKHASH of the workers' sockets.
 *
 * It runs once for each send() of a worker (or of the daemon) on its own socket, before any byte moves.  The first
 * eight bytes of the send say how many 64-byte records there are and to which address they go; the program looks up
 * which slot serves that address and moves the whole send onto the receive queue of that slot's socket.  What it does
 * not move takes the ordinary way, to the other end of the sender's TCP connection: the daemon.  So there is one
 * verdict, SK_PASS, and nothing is ever dropped (SK_DROP would fail every later send of that socket).
 *
 * One send is one verdict.  bpf_msg_apply_bytes and bpf_msg_cork_bytes are not used: the redirection of a message
 * outlives a run, so a later record would follow an earlier one to its destination.
 *
 * Moving a message charges no socket buffer, so the program itself holds the receiver's window: `sent` is
 * counted here, `consumed` is written by the receiver through its mapping of the same table.  Two sends that run at
 * the same time may both see the last free place; the window is then passed by at most one send per CPU.
 *
 * The limits and the layout come from lifl/core/ids.py and lifl/redirect/tables.py, as -D flags of the loader:
 *   RECORD_BYTES RECORD_MAGIC RECORDS_PER_SEND_MAX ADDRESSES_MAX SLOTS_MAX WINDOW
 * The dialect is bcc's: maps are declared by its macros and used as objects, never inside a macro of ours.
 */

struct head {			/* the first bytes of a record; core/ids.py packs it */
	u16 magic;
	u16 count;		/* records in this send, all for `address` */
	u32 address;
};

struct slot {			/* one cache line; which writer has which word: redirect/tables.py */
	u64 sent;		/* this program */
	u64 bytes;		/* this program */
	u64 last_ns;		/* this program, CLOCK_MONOTONIC */
	u64 over;		/* this program: records that found no room in the window */
	u64 consumed;		/* the receiver */
	u64 malformed;		/* the receiver */
	u64 held;		/* the daemon sets it, the receiver clears it */
	u64 generation;		/* the daemon */
};

enum total { RUNS, UNKNOWN, DEAD, OVER, MALFORMED, TOTALS };

BPF_SOCKHASH(sockets, u32, SLOTS_MAX);
/* a route is slot | generation << 32 in one word, so that a switch is one store; 0 is no route */
BPF_F_TABLE("array", u32, u64, routes, ADDRESSES_MAX, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct slot, slots, SLOTS_MAX, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, totals, TOTALS, BPF_F_MMAPABLE);

static inline void add(u64 *word, u64 n)
{
	if (word)
		__sync_fetch_and_add(word, n);
}

int redirect(struct sk_msg_md *msg)
{
	u32 which = RUNS, slot, address, count;
	u64 *route;
	struct slot *to;
	struct head *head;

	add(totals.lookup(&which), 1);
	which = MALFORMED;
	if (msg->size < sizeof(*head))
		goto fault;
	/* The send's first bytes may straddle two page fragments; then only a part of them is mapped. */
	if (msg->data + sizeof(*head) > msg->data_end && bpf_msg_pull_data(msg, 0, sizeof(*head), 0))
		goto fault;
	head = (void *)(long)msg->data;
	if ((void *)(head + 1) > (void *)(long)msg->data_end || head->magic != RECORD_MAGIC)
		goto fault;
	count = head->count;
	address = head->address;
	if (!count || count > RECORDS_PER_SEND_MAX || msg->size != count * RECORD_BYTES)
		goto fault;
	if (!address)
		return SK_PASS;	/* to the daemon, on purpose */

	which = UNKNOWN;
	route = routes.lookup(&address);
	if (!route || !*route)
		goto fault;
	u64 entry = *route;
	slot = (u32)entry;
	to = slots.lookup(&slot);
	if (!to)
		goto fault;

	which = DEAD;
	if (to->generation != entry >> 32)
		goto fault;
	which = OVER;
	if (to->sent + count - to->consumed > WINDOW) {
		__sync_fetch_and_add(&to->over, count);
		goto fault;
	}
	which = DEAD;
	if (sockets.msg_redirect_hash(msg, &slot, BPF_F_INGRESS) != SK_PASS)
		goto fault;
	__sync_fetch_and_add(&to->sent, count);
	__sync_fetch_and_add(&to->bytes, msg->size);
	to->last_ns = bpf_ktime_get_ns();
	return SK_PASS;
fault:
	add(totals.lookup(&which), 1);
	return SK_PASS;
}

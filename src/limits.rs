//! Every bound of the service, in one place and related to each other by assertions that the
//! compiler checks. Nothing grows without one of these.

use std::time::Duration;

// --- What a request may hold ---

/// Bytes in the body of one request.
pub const BODY_BYTES_MAX: usize = 16 * 1024;
/// Bytes in the body of a batch.
pub const BATCH_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Claims in a batch.
pub const BATCH_ITEMS_MAX: usize = 500;
/// Faults listed in one answer.
pub const FAULTS_MAX: usize = 32;
/// Time for a request to arrive whole.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes in an `Authorization` header.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Connections that one HTTP worker holds open; further ones wait to be accepted.
pub const CONNECTIONS_MAX: usize = 4096;
/// How long an idle connection is kept open for a further request.
pub const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a connection may bring no whole request before it is closed, whatever it does meanwhile.
pub const CONNECTION_PATIENCE: Duration = Duration::from_secs(120);
/// How long a connection that is being closed is waited for.
pub const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time, in seconds, for which requests are still served after the service was asked to stop.
pub const DRAIN_S_MAX: u32 = 60;
/// How long requests that have arrived are waited for when the service stops.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(15);
/// Items on a page of a list, at most and by default.
pub const PAGE_ITEMS_MAX: usize = 200;
/// Items on a page where no `limit` is given.
pub const PAGE_ITEMS_DEFAULT: usize = 50;

/// Digits of yuan in a price.
pub const PRICE_YUAN_DIGITS_MAX: usize = 8;
/// Fen of the highest price that so many digits write.
pub const PRICE_FEN_MAX: i64 = 9_999_999_999;
/// Digits of yuan in a fund's budget or adjustment.
pub const BUDGET_YUAN_DIGITS_MAX: usize = 13;
/// Characters in order, invoice, store and terminal numbers.
pub const REFERENCE_CHARS_MAX: usize = 64;
/// Characters in a serial number.
pub const SN_CHARS_MAX: usize = 64;
/// Characters in an idempotency key.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;
/// Lines in an order.
pub const ORDER_LINE_MAX: u16 = 999;
/// IMEIs of one device.
pub const IMEI_MAX: usize = 4;
/// Subsidies received elsewhere that one claim may name.
pub const RECEIVED_ELSEWHERE_MAX: usize = 8;

// --- Time ---

/// How far back a sale may lie.
pub const SOLD_AT_BACK_MS: i64 = 15 * 60_000;
/// How far ahead of the service's clock a till's may run.
pub const SOLD_AT_AHEAD_MS: i64 = 5 * 60_000;
/// How far back a sale with a `late_reason` may lie.
pub const SOLD_AT_LATE_BACK_MS: i64 = 72 * 3_600_000;
/// Length of a hold where the request names none.
pub const HOLD_MINUTES_DEFAULT: u32 = 30;
/// How long after its making a redeemed claim can be cancelled by key.
pub const CANCEL_WINDOW_MS: i64 = 24 * 3_600_000;
/// How long the key of a released or expired hold, or a spent key, is remembered.
pub const KEY_RETENTION_MS: i64 = 30 * 86_400_000;

// --- Programmes ---

/// Programmes in one set.
pub const PROGRAMMES_MAX: usize = 64;
/// Bytes in the files of one set; they go into one journal entry together.
pub const PROGRAMME_SET_BYTES_MAX: usize = 120 * 1024;
/// Characters in a programme's id.
pub const PROGRAMME_ID_CHARS_MAX: usize = 48;
/// Characters in a category's id.
pub const CATEGORY_CHARS_MAX: usize = 48;
/// Categories, and regions, that one programme may list.
pub const PROGRAMME_LIST_MAX: usize = 256;
/// Characters in a title, a name or a clause.
pub const PROGRAMME_PROSE_CHARS_MAX: usize = 200;
/// Decimals of a rate; so few that rate times price is always exact.
pub const RATE_DECIMALS_MAX: usize = 6;
/// Fen that a programme may pay for one item at most: the state keeps a claim's subsidy in 32 bits.
pub const SUBSIDY_FEN_MAX: i64 = 4_294_967_295;
/// Longest hold that a programme may allow.
pub const HOLD_DAYS_MAX: u16 = 60;

// --- The ledger ---

/// Commands waiting for the writer; one more is answered 503.
pub const QUEUE_COMMANDS_MAX: usize = 8192;
/// Commands that make a batch full; a request of many that was begun with is taken whole.
pub const WRITER_BATCH_COMMANDS_MAX: usize = 1024;
/// Commands that the writer takes at a time: while these are written it decides the next, which would all
/// wait if it took whatever is queued.
pub const WRITER_TAKEN_COMMANDS: usize = 128;
/// Commands from which a batch is written by another thread while the next is decided.
pub const WRITER_SENT_COMMANDS_MIN: usize = 48;
/// How long the writer waits for an append before it looks who has come meanwhile.
pub const WRITER_GLANCE: Duration = Duration::from_micros(100);
/// Dead holds expired before the commands of one batch.
pub const WRITER_BATCH_EXPIRIES_MAX: usize = 256;
/// Keys whose retention has passed that one folded entry may drop.
pub const FOLD_DROPS_MAX: usize = 64;
/// Most bytes that one journal entry comes to: what goes into one is bounded so, see below.
pub const ENTRY_BYTES_MAX: usize = 256 * 1024;
/// Bytes for which there is room from the start where an entry is written; a claim's has fewer.
pub const ENTRY_BYTES_USUAL: usize = 2048;
/// Entries read from the journal at a time.
pub const JOURNAL_READ_ENTRIES_MAX: usize = 128;
/// Bytes in a page of the embedded journal. An entry has some 1,100: three would fit into 4 KiB, and
/// fourteen fit into this.
pub const JOURNAL_PAGE_BYTES: u32 = 16 * 1024;
/// Bytes of entries after which the embedded journal's write-ahead log is carried over into its file. SQLite
/// syncs that file when all of the log has been carried over, which under load is the writer's part: it waits
/// until these bytes have reached the disk, a millisecond or so.
pub const JOURNAL_CHECKPOINT_BYTES: usize = 1024 * 1024;
/// Pages of it that the writer should be left with, so that it is hardly held up.
pub const JOURNAL_CHECKPOINT_REST_PAGES: i64 = 16;
/// Rounds in which the rest is brought down to that, if the disk allows.
pub const JOURNAL_CHECKPOINT_ROUNDS: usize = 8;
/// Bytes of the embedded journal's write-ahead log that are kept on disk after a checkpoint.
pub const JOURNAL_WAL_BYTES_KEPT: u32 = 64 * 1024 * 1024;
/// How long a start waits for those who read the embedded journal and keep its log from being carried over.
pub const JOURNAL_OPEN_PATIENCE: Duration = Duration::from_secs(5);
/// How long it waits between two looks.
pub const JOURNAL_OPEN_PAUSE: Duration = Duration::from_millis(20);
/// How long PostgreSQL may take for anything.
pub const POSTGRES_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest pause before connecting to PostgreSQL again.
pub const POSTGRES_RETRY_MS_MAX: u64 = 1000;
/// How long a connection to PostgreSQL is silent before it is asked whether it is still there.
pub const POSTGRES_KEEPALIVE: Duration = Duration::from_secs(10);
/// Connections on which entries are read.
pub const POSTGRES_READERS: usize = 4;
/// How long a process takes turns after another has appended before it.
pub const CONTENTION: Duration = Duration::from_secs(1);
/// How long a process waits for its turn before it goes on without.
pub const TURN_WAIT: Duration = Duration::from_millis(250);
/// Batches of entries folded by one thread alone before others help: all that is missing while the service
/// runs, next to nothing at start.
pub const CATCH_UP_BATCHES_ALONE: usize = 16;
/// Entries whose keys are looked up in the index together before they are folded: a look at a large index waits
/// for memory, several looks wait together, and the lines of so many stay in the processor's caches.
pub const FOLD_WARMED_ENTRIES: usize = 32;
/// Threads that decode entries while others are read and folded, at start.
pub const DECODERS: usize = 2;
/// Shards of the state's key index; each grows on its own, so that no growth is felt.
pub const KEY_INDEX_SHARDS: usize = 4096;
/// Claims in one chunk of the state's claim table.
pub const CLAIM_CHUNK: usize = 16 * 1024;
/// Threads that fill the key index when a state is read from a snapshot.
pub const IMAGE_INDEXERS: usize = 2;
/// Keys handed to one of them at a time.
pub const IMAGE_INDEX_BATCH: usize = 1024;
/// Blocks of claims, and batches of keys, that wait for whoever takes them next.
pub const IMAGE_BLOCKS_AHEAD: usize = 4;
/// Snapshots of the state that a process keeps.
pub const SNAPSHOTS_KEPT: usize = 2;
/// Bytes of a snapshot after which those written are carried to the disk.
pub const SNAPSHOT_SYNC_BYTES: usize = 8 * 1024 * 1024;
/// Claims in one digest of a part of the state: the writer takes less than a millisecond for it.
pub const DIGEST_CLAIMS_MAX: usize = 256;
/// Highest per-person limit a programme may set.
pub const PERSON_LIMIT_MAX: u16 = 100;
/// How often a journal that other processes share is looked for while it is away.
pub const LEDGER_PROBE: Duration = Duration::from_millis(100);
/// Times in a row that a batch is decided again because another process appended first.
pub const WRITER_LOST_RACES_MAX: usize = 32;
/// Entries appended last that are kept in memory for those who ask again: some 10 MB of usual claims.
pub const RECENT_ENTRIES: usize = 8192;
/// How often a process looks whether it still is as its journal says a process should be.
pub const WATCH_PACE: Duration = Duration::from_secs(1);
/// How far the machine's clock may be from PostgreSQL's.
pub const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(2);
/// How long a command may wait for its decision before the caller is told 503.
pub const DECISION_TIMEOUT: Duration = Duration::from_secs(10);

// --- The book ---

/// Bytes in a page of the embedded book. A transaction changes most pages of the newest runs: the fewer there
/// are, the fewer writes, which all come at once.
pub const BOOK_PAGE_BYTES: u32 = 16 * 1024;
/// Bytes of the embedded book's write-ahead log after which it is copied back.
pub const BOOK_WAL_BYTES: u32 = 4 * 1024 * 1024;
/// Entries the projector puts into one transaction of the book.
pub const BOOK_BATCH_ENTRIES_MAX: usize = 16 * 1024;
/// Entries offered to the projector and not yet taken, some 250 bytes of each; it reads the journal for what
/// does not fit. It may have taken as many that are not in the book yet.
pub const BOOK_INBOX_ENTRIES_MAX: usize = 32 * 1024;
/// How long the projector gathers entries while nobody waits for the book. A claim touches a page of each
/// index, wherever its keys are: the more claims at a time, the fewer pages for each.
pub const BOOK_PACE: Duration = Duration::from_millis(200);
/// How long the projector works before it lets others have the processor for [`BOOK_BREATH`] times as long:
/// whoever answers a till would else wait for all of what was gathered.
pub const BOOK_WORK: Duration = Duration::from_micros(500);
/// How much longer than it worked the projector pauses, as long as there are fewer than
/// [`BOOK_HURRY_ENTRIES`] to carry in and nobody waits for them.
pub const BOOK_BREATH: u32 = 2;
/// How many entries at a time make the projector hurry.
pub const BOOK_HURRY_ENTRIES: usize = BOOK_BATCH_ENTRIES_MAX / 2;
/// Rows that a book in PostgreSQL is given at a time, for the same reason.
pub const BOOK_ROWS_AT_A_TIME: usize = 256;
/// How often it looks how far another process has come that carries the book on.
pub const BOOK_PACE_BESIDE: Duration = Duration::from_secs(1);
/// The same while somebody waits for it.
pub const BOOK_GLANCE: Duration = Duration::from_millis(20);
/// How long a book may stand still that another process carries on, before this one looks whether there is
/// something to be done.
pub const BOOK_PATIENCE: Duration = Duration::from_secs(3);
/// How long the projector pauses after failing again and again.
pub const BOOK_RETRY_MAX: Duration = Duration::from_secs(60);
/// How long the projector pauses at most while a database is away.
pub const BOOK_RETRY_AWAY: Duration = Duration::from_secs(1);
/// Queries on the book that run at a time.
pub const BOOK_QUERIES_RUNNING_MAX: usize = 4;
/// Queries on the book that run or wait to run; one more is answered 503.
pub const BOOK_QUERIES_MAX: usize = 64;
/// How long a connection to the book waits for a lock.
pub const BOOK_LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a transaction of the projector may take where the book is in PostgreSQL.
pub const BOOK_WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a rebuilding of the book may make no progress.
pub const BOOK_REBUILD_PATIENCE: Duration = Duration::from_secs(60);
/// How long a list waits for the book to reach the journal's head.
pub const BOOK_WAIT: Duration = Duration::from_secs(1);
/// Time a query on the book may take.
pub const BOOK_QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows of totals in one answer.
pub const TOTALS_ROWS_MAX: usize = 10_000;

// --- The audit ---

/// How many times as long as it works the audit rests.
pub const AUDIT_REST: u32 = 4;
/// How long after the start the first audit begins at the latest.
pub const AUDIT_FIRST: Duration = Duration::from_secs(600);
/// How often the audit asks a ledger that does not answer, once a second.
pub const AUDIT_TRIES: u32 = 60;
/// How often it is looked whether a snapshot is due.
pub const SNAPSHOT_PACE: Duration = Duration::from_secs(1);
/// How long the audit rests for each byte of a snapshot that it reads, so that the state is made of it at
/// the pace of everything else that it does.
pub const SNAPSHOT_READ_REST: Duration = Duration::from_nanos(16);
/// A snapshot is due once more than one in so many of a journal's entries were appended since the last. So
/// the next start folds few of them, and what is written for snapshots stays in proportion to the journal,
/// however big that becomes.
pub const SNAPSHOT_PARTS: u64 = 20;

// --- Tokens and rates ---

/// Verified tokens remembered by one worker.
pub const TOKEN_CACHE_ENTRIES_MAX: usize = 4096;
/// How long a verified token is believed without being verified again.
pub const TOKEN_CACHE_TTL: Duration = Duration::from_secs(60);
/// Leeway between the clocks of token issuer and service.
pub const TOKEN_LEEWAY_S: u64 = 30;
/// Characters in the name of a platform or of a regulator's officer.
pub const TOKEN_SUBJECT_CHARS_MAX: usize = 64;
/// Bytes in a JWKS file.
pub const JWKS_BYTES_MAX: usize = 1024 * 1024;
/// Keys in a JWKS file.
pub const JWKS_KEYS_MAX: usize = 64;
/// Bits in an RSA key that signs tokens, at least and at most.
pub const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// How often the JWKS file is looked at.
pub const JWKS_POLL: Duration = Duration::from_secs(1);
/// How long the tokens that `--dev` prints are valid.
pub const DEV_TOKEN_TTL_S: u64 = 12 * 3600;
/// Retailers whose rate is remembered before idle ones are dropped.
pub const RATE_KEYS_MAX: usize = 100_000;

// --- The shield ---

/// How often a process tells the others what it has in flight and hears what they have; each time a
/// quarter more or less, so that no process is always the first to find a token.
pub const SHIELD_TICK: Duration = Duration::from_millis(20);
/// Least time between two such exchanges, however many requests ask for one.
pub const SHIELD_EXCHANGE_GAP: Duration = Duration::from_millis(4);
/// How long the tokens leased at a time should last at the pace of late.
pub const SHIELD_LEASE: Duration = Duration::from_millis(60);
/// How long leased tokens may be spent before they lapse.
pub const SHIELD_LEASE_LIFE: Duration = Duration::from_secs(1);
/// The part of a burst that a process leases ahead, at least and at most, as divisors.
pub const SHIELD_LEASE_PARTS: (u32, u32) = (32, 4);
/// Keys asked for in one exchange with Redis; further ones wait for the next.
pub const SHIELD_FLUSH_KEYS_MAX: usize = 1024;
/// Requests of one key that wait for Redis; one more is left to the local limit.
pub const SHIELD_WAITERS_MAX: usize = 1024;
/// Failures in a row of a cluster's slot after which its keys are left to the local limit.
pub const SHIELD_SLOT_FAILURES_MAX: u32 = 2;
/// How long that is.
pub const SHIELD_SLOT_PAUSE: Duration = Duration::from_secs(1);
/// Requests marked as in flight in one process; further ones go without a mark.
pub const SHIELD_IN_FLIGHT_MAX: usize = 2 * QUEUE_COMMANDS_MAX;
/// Marks that one process tells the others at a time.
pub const SHIELD_MARKS_MAX: usize = 1024;
/// How long a request must be in flight before the others are told.
pub const SHIELD_MARK_AFTER: Duration = Duration::from_millis(20);
/// How long a mark lives, and how long a process counts after it was last heard of.
pub const SHIELD_MARK_LIFE: Duration = Duration::from_secs(2);
/// How long after its death a mark is known that is told no more: told again it is no younger for it.
pub const SHIELD_PAST_MARK_LIFE: Duration = Duration::from_secs(10);
/// Such marks that are known before no new one is believed until some are forgotten.
pub const SHIELD_PAST_MARKS_MAX: usize = SHIELD_PROCESSES_MAX * SHIELD_MARKS_MAX;
/// Processes that share one Redis.
pub const SHIELD_PROCESSES_MAX: usize = 64;
/// Processes that share the limits as long as Redis has never said how many there are.
pub const SHIELD_PROCESSES_ASSUMED: u32 = 3;
/// Failures of Redis in a row after which it is left alone for a while.
pub const SHIELD_FAILURES_MAX: u32 = 3;
/// How long Redis is left alone after failing, at first and at most.
pub const SHIELD_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long a connection to Redis may take to be made.
pub const SHIELD_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Slots that the keys of a Redis Cluster are put into.
pub const SHIELD_SLOTS: u8 = 64;

// --- Keys and settings ---

/// Bytes in a file that holds one key or secret.
pub const KEY_FILE_BYTES_MAX: usize = 16 * 1024;
/// Bytes in a hash key's secret, at least.
pub const HASH_KEY_BYTES_MIN: usize = 32;
/// Hash keys live at one time. One that claims are kept under stays live, so these are all that write in a
/// journal's life.
pub const HASH_KEYS_MAX: usize = 4;
/// Characters in the name of a hash key.
pub const HASH_KEY_NAME_CHARS_MAX: usize = 8;
/// Bytes in a configuration file.
pub const CONFIG_BYTES_MAX: usize = 1024 * 1024;
/// HTTP workers of one process.
pub const WORKERS_MAX: u32 = 256;
/// Requests per second that a rate limit may be set to.
pub const RATE_PER_SECOND_MAX: u32 = 1_000_000;

// Whoever answers a request, waits for the next and gives it its time is not cut short.
const _: () = assert!(
    DECISION_TIMEOUT.as_secs() + KEEP_ALIVE.as_secs() + 2 * REQUEST_TIMEOUT.as_secs()
        < CONNECTION_PATIENCE.as_secs()
);
const _: () = assert!(TURN_WAIT.as_millis() < CONTENTION.as_millis());
const _: () = assert!(TURN_WAIT.as_millis() < POSTGRES_TIMEOUT.as_millis());
const _: () = assert!(DECISION_TIMEOUT.as_secs() < SHUTDOWN_TIMEOUT.as_secs());
const _: () = assert!(BATCH_ITEMS_MAX <= WRITER_BATCH_COMMANDS_MAX);
const _: () = assert!(WRITER_SENT_COMMANDS_MIN <= WRITER_TAKEN_COMMANDS);
const _: () = assert!(WRITER_TAKEN_COMMANDS <= WRITER_BATCH_COMMANDS_MAX);
const _: () = assert!(WRITER_BATCH_COMMANDS_MAX <= QUEUE_COMMANDS_MAX);
const _: () = assert!(BATCH_ITEMS_MAX * 2 * 1024 <= BATCH_BODY_BYTES_MAX);
const _: () = assert!(BODY_BYTES_MAX < BATCH_BODY_BYTES_MAX);
const _: () = assert!(PAGE_ITEMS_DEFAULT <= PAGE_ITEMS_MAX);
const _: () = assert!(SOLD_AT_BACK_MS < SOLD_AT_LATE_BACK_MS);
const _: () = assert!(KEY_INDEX_SHARDS.is_multiple_of(IMAGE_INDEXERS) && KEY_INDEX_SHARDS <= 1 << 16);
const _: () = assert!(KEY_INDEX_SHARDS.is_power_of_two() && CLAIM_CHUNK.is_power_of_two());
const _: () = assert!(TOKEN_BYTES_MAX < BODY_BYTES_MAX);
const _: () = assert!(HASH_KEY_BYTES_MIN * 2 < KEY_FILE_BYTES_MAX);
const _: () = assert!(BODY_BYTES_MAX * 4 < ENTRY_BYTES_MAX);
const _: () = assert!(WRITER_BATCH_COMMANDS_MAX + WRITER_BATCH_EXPIRIES_MAX <= BOOK_INBOX_ENTRIES_MAX / 2);
const _: () = assert!(BOOK_QUERIES_RUNNING_MAX <= BOOK_QUERIES_MAX);
const _: () = assert!(BOOK_PACE.as_millis() < BOOK_WAIT.as_millis());
const _: () = assert!(PRICE_FEN_MAX + 1 == 100 * 10_i64.pow(PRICE_YUAN_DIGITS_MAX as u32));
// A budget in fen, and any sum of a hundred of them, fits into 64 bits.
const _: () = assert!(BUDGET_YUAN_DIGITS_MAX <= 13);
// JSON writes no character of a programme file with more than two bytes for one (TOML has no control
// characters but tab and line ends), so that a set fits into its entry with room for the rest.
const _: () = assert!(PROGRAMME_SET_BYTES_MAX * 2 + 4096 <= ENTRY_BYTES_MAX);
const _: () = assert!(SHIELD_SLOT_FAILURES_MAX <= SHIELD_FAILURES_MAX);
const _: () = assert!(SHIELD_EXCHANGE_GAP.as_millis() < SHIELD_TICK.as_millis());
const _: () = assert!(SHIELD_TICK.as_millis() * 2 < SHIELD_LEASE.as_millis());
const _: () = assert!(SHIELD_LEASE.as_millis() < SHIELD_LEASE_LIFE.as_millis());
const _: () = assert!(SHIELD_MARK_AFTER.as_millis() < SHIELD_MARK_LIFE.as_millis());
const _: () = assert!(SHIELD_MARK_LIFE.as_millis() <= u16::MAX as u128);
const _: () = assert!(SHIELD_LEASE_PARTS.0 > SHIELD_LEASE_PARTS.1 && SHIELD_LEASE_PARTS.1 > 1);

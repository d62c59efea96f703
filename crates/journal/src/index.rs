//! Which records are about a subject: an `SQLite` file that trails the journal and can always be rebuilt.
//!
//! What always holds: the index knows the hash of the last record it took in; where that is not the
//! journal's, it empties itself and starts again from record 1. It is never asked what is true, only where
//! to look. Writes are synced at checkpoints only, so a loss of power may set it back, never make it wrong.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, params};

use crate::disk::Disk;
use crate::error::{Error, IoContext, Result};
use crate::hash::Hash;
use crate::reader::Reader;
use crate::record::{Head, Record};

const FORMAT: i64 = 1;
const SCHEMA: &str = "
    CREATE TABLE position (format INTEGER NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;
    CREATE TABLE subject (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE mention (subject INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (subject, seq))
        STRICT, WITHOUT ROWID;
";
/// Records taken in between two commits.
const BATCH_RECORDS: usize = 50_000;
/// Subjects whose numbers are kept at hand.
const KNOWN_SUBJECTS_MAX: usize = 200_000;

/// The subject index.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    db: Connection,
    known: HashMap<String, i64>,
}

/// How far [`Index::catch_up`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaughtUp {
    /// The last record in the index.
    pub position: Head,
    /// Whether it had to start again from record 1.
    pub rebuilt: bool,
}

impl Index {
    /// Opens the index at `path` for its one writer; makes an empty one if there is none, and in place of a file that
    /// cannot be used.
    pub fn open(path: &Path) -> Result<Index> {
        let db = match open_usable(path) {
            Ok(db) => db,
            Err(e) if is_unusable(&e) => recreate(path)?,
            Err(e) => return Err(e),
        };
        Ok(Index { path: path.to_owned(), db, known: HashMap::new() })
    }

    /// Opens an index that another thread or process keeps up to date, for questions only.
    pub fn open_read_only(path: &Path) -> Result<Index> {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        Ok(Index { path: path.to_owned(), db, known: HashMap::new() })
    }

    /// The last record taken in.
    pub fn position(&self) -> Result<Head> {
        position(&self.db)
    }

    /// Takes in the records up to `up_to_seq`, the durable head as its writer knows it; starts again
    /// if the journal is not the one this index was made from, or the file broke.
    ///
    /// # Errors
    /// Those of the journal, and [`Error::Index`] if the file cannot be written.
    pub fn catch_up<D: Disk>(&mut self, reader: &Reader<D>, up_to_seq: u64) -> Result<CaughtUp> {
        match self.follow(reader, up_to_seq) {
            Err(e) if is_unusable(&e) => {
                // The new connection goes to the new file; the old one is dropped with the assignment.
                self.db = recreate(&self.path)?;
                self.known.clear();
                let caught_up = self.follow(reader, up_to_seq)?;
                Ok(CaughtUp { rebuilt: true, ..caught_up })
            }
            other => other,
        }
    }

    /// The records about `subject` after record `after_seq`, oldest first, at most `limit`.
    pub fn by_subject(&self, subject: &str, after_seq: u64, limit: usize) -> Result<Vec<u64>> {
        self.seqs(
            "SELECT seq FROM mention WHERE subject = (SELECT id FROM subject WHERE name = ?1)
             AND seq > ?2 ORDER BY seq LIMIT ?3",
            (subject, after_seq, limit),
        )
    }

    /// The records about `subject` before record `before_seq`, newest first, at most `limit`.
    pub fn by_subject_newest_first(&self, subject: &str, before_seq: u64, limit: usize) -> Result<Vec<u64>> {
        self.seqs(
            "SELECT seq FROM mention WHERE subject = (SELECT id FROM subject WHERE name = ?1)
             AND seq < ?2 ORDER BY seq DESC LIMIT ?3",
            (subject, before_seq, limit),
        )
    }

    fn seqs(&self, query: &str, (subject, seq, limit): (&str, u64, usize)) -> Result<Vec<u64>> {
        let mut statement = self.db.prepare_cached(query)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![subject, to_sql(seq), limit], |row| row.get(0))?;
        rows.map(|seq| Ok(from_sql(seq?))).collect()
    }

    fn follow<D: Disk>(&mut self, reader: &Reader<D>, up_to_seq: u64) -> Result<CaughtUp> {
        let mut from = self.position()?;
        let rebuilt = reader.hash_at(from.seq)? != Some(from.hash);
        if rebuilt {
            self.empty()?;
            from = Head::GENESIS;
        }
        let mut batch = Vec::new();
        for record in reader.read_from(from.seq + 1)?.take_while(|r| !matches!(r, Ok(r) if r.seq > up_to_seq))
        {
            batch.push(record?);
            if batch.len() >= BATCH_RECORDS {
                self.take_in(&batch)?;
                batch.clear();
            }
        }
        self.take_in(&batch)?;
        Ok(CaughtUp { position: self.position()?, rebuilt })
    }

    fn empty(&mut self) -> Result<()> {
        self.known.clear();
        let change = self.db.transaction()?;
        change.execute_batch("DELETE FROM mention; DELETE FROM subject;")?;
        set_position(&change, Head::GENESIS)?;
        Ok(change.commit()?)
    }

    fn take_in(&mut self, records: &[Record]) -> Result<()> {
        let Some(last) = records.last() else { return Ok(()) };
        if self.known.len() > KNOWN_SUBJECTS_MAX {
            self.known.clear();
        }
        let change = self.db.transaction()?;
        let taken = insert(&change, &mut self.known, records)
            .and_then(|()| set_position(&change, Head { seq: last.seq, hash: last.hash }))
            .and_then(|()| Ok(change.commit()?));
        if taken.is_err() {
            // The numbers given to new subjects were rolled back.
            self.known.clear();
        }
        taken
    }
}

fn insert(change: &Transaction<'_>, known: &mut HashMap<String, i64>, records: &[Record]) -> Result<()> {
    let mut mentions = Vec::new();
    for record in records {
        for subject in &record.subjects {
            mentions.push((subject_id(change, known, subject)?, to_sql(record.seq)));
        }
    }
    // In the order of the table, each of its pages is visited once.
    mentions.sort_unstable();
    mentions.dedup();
    let mut statement = change.prepare_cached("INSERT INTO mention (subject, seq) VALUES (?1, ?2)")?;
    for mention in mentions {
        statement.execute(mention)?;
    }
    Ok(())
}

fn subject_id(change: &Transaction<'_>, known: &mut HashMap<String, i64>, name: &str) -> Result<i64> {
    if let Some(id) = known.get(name) {
        return Ok(*id);
    }
    let mut find = change.prepare_cached("SELECT id FROM subject WHERE name = ?1")?;
    let found: Option<i64> = find.query_row([name], |row| row.get(0)).optional()?;
    let id = match found {
        Some(id) => id,
        None => change.prepare_cached("INSERT INTO subject (name) VALUES (?1)")?.insert([name])?,
    };
    known.insert(name.to_owned(), id);
    Ok(id)
}

fn position(db: &Connection) -> Result<Head> {
    let mut statement = db.prepare_cached("SELECT seq, hash FROM position")?;
    let (seq, hash): (i64, [u8; 32]) = statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(Head { seq: from_sql(seq), hash: Hash(hash) })
}

fn set_position(change: &Transaction<'_>, to: Head) -> Result<()> {
    change.execute("UPDATE position SET seq = ?1, hash = ?2", params![to_sql(to.seq), to.hash.0])?;
    Ok(())
}

/// SQL integers are signed; no journal comes near the difference.
fn to_sql(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

fn from_sql(seq: i64) -> u64 {
    u64::try_from(seq).unwrap_or(0)
}

fn open_usable(path: &Path) -> Result<Connection> {
    let db = Connection::open(path)?;
    db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    db.pragma_update(None, "synchronous", "NORMAL")?;
    db.pragma_update(None, "wal_autocheckpoint", 16_000)?;
    db.pragma_update(None, "cache_size", -64_000)?;
    let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version != FORMAT {
        begin(&db)?;
    }
    let format: i64 = db.query_row("SELECT format FROM position", [], |row| row.get(0))?;
    position(&db)?;
    if format == FORMAT { Ok(db) } else { Err(rusqlite::Error::InvalidQuery.into()) }
}

fn begin(db: &Connection) -> Result<()> {
    let change = db.unchecked_transaction()?;
    change.execute_batch(SCHEMA)?;
    let start = params![FORMAT, 0, Hash::GENESIS.0];
    change.execute("INSERT INTO position (format, seq, hash) VALUES (?1, ?2, ?3)", start)?;
    change.pragma_update(None, "user_version", FORMAT)?;
    Ok(change.commit()?)
}

fn recreate(path: &Path) -> Result<Connection> {
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        match std::fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).doing("remove", &file.to_string_lossy());
            }
            _ => {}
        }
    }
    open_usable(path)
}

/// Whether the file itself is the trouble, so that a new one helps.
fn is_unusable(error: &Error) -> bool {
    let Error::Index(error) = error else { return false };
    match error.sqlite_error_code() {
        // No code: the tables are there but hold something else.
        None | Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown) => true,
        Some(_) => false,
    }
}

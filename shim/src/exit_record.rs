//! The file in a bundle that says how init ended.
//!
//! It is for `delete`, which runs when the shim has died: a process can be asked for its status by its parent only, so
//! without this nobody could tell any more.

use anyhow::{Context, Result, anyhow};
use executors::Exit;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

const FILE: &str = "exit";

/// Writes the record. The file appears whole: it is read after a crash.
pub fn write(bundle: &Path, exit: Exit) -> Result<()> {
    let since = exit.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (path, temporary) = (bundle.join(FILE), bundle.join(format!(".{FILE}")));
    std::fs::write(&temporary, format!("{} {}.{:09}\n", exit.code, since.as_secs(), since.subsec_nanos()))
        .and_then(|()| std::fs::rename(&temporary, &path))
        .with_context(|| format!("write {}", path.display()))
}

/// Reads the record; `None` when there is none.
pub fn read(bundle: &Path) -> Result<Option<Exit>> {
    let path = bundle.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("read {}", path.display()))?,
    };
    parse(&text).map(Some).ok_or_else(|| anyhow!("{}: {text:?} is no record of an exit", path.display()))
}

fn parse(text: &str) -> Option<Exit> {
    let (code, at) = text.strip_suffix('\n')?.split_once(' ')?;
    let (seconds, nanos) = at.split_once('.')?;
    let since = Duration::new(seconds.parse().ok()?, nanos.parse().ok()?);
    Some(Exit { code: code.parse().ok()?, at: SystemTime::UNIX_EPOCH.checked_add(since)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(read(bundle.path()).unwrap(), None);
        let exit = Exit { code: 137, at: SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 42) };
        write(bundle.path(), exit).unwrap();
        assert_eq!(read(bundle.path()).unwrap(), Some(exit));
        std::fs::write(bundle.path().join(FILE), "13").unwrap();
        assert!(read(bundle.path()).is_err(), "cut off");
    }
}

//! Content by its digest.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;

use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha512};

use super::ImageStore;
use crate::error::{Error, Result, bail};
use crate::host;
use crate::wasm::MAX_MODULE;

/// The largest manifest, index or config that is read, in bytes: what a registry has to take of a manifest (OCI distribution
/// spec, "Pushing Manifests"), and hundreds of times what real ones have.
pub(super) const MAX_DOCUMENT: u64 = 4 << 20;

/// A digest in the form of the OCI image spec (descriptor.md, "Digests"), by an algorithm that is registered there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest(String);

impl Digest {
    /// In hexadecimal, if it is one of SHA-256.
    pub(crate) fn sha256(&self) -> Option<&str> {
        self.0.strip_prefix("sha256:")
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Digest> {
        let (hex, length) = match text.split_once(':') {
            Some(("sha256", hex)) => (hex, 64),
            Some(("sha512", hex)) => (hex, 128),
            _ => bail!(InvalidArgument, "digest {:?}: neither sha256 nor sha512", short(&text)),
        };
        if hex.len() != length || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            bail!(InvalidArgument, "digest {:?}: not {length} hexadecimal digits", short(&text));
        }
        Ok(Digest(text))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// As much of a text of unknown length as belongs in an error.
pub(super) fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(160)]
}

/// Reads a manifest, index or config.
pub(super) fn document(store: &dyn ImageStore, digest: &Digest, size: u64) -> Result<Vec<u8>> {
    limit(digest, size, MAX_DOCUMENT)?;
    let mut bytes = Vec::new();
    copy(store, digest, size, &mut bytes)?;
    Ok(bytes)
}

/// Reads a module into a file in memory that nobody can change any more.
pub(super) fn module(store: &dyn ImageStore, digest: &Digest, size: u64) -> Result<OwnedFd> {
    limit(digest, size, MAX_MODULE)?;
    host::sealed_file_by("hybrid-module", |file| copy(store, digest, size, file))
}

fn limit(digest: &Digest, size: u64, most: u64) -> Result<()> {
    if size > most {
        bail!(InvalidArgument, "{digest}: {size} bytes, and no more than {most} are read");
    }
    Ok(())
}

/// Copies content that has this digest and size and no other.
fn copy(store: &dyn ImageStore, digest: &Digest, size: u64, to: &mut dyn Write) -> Result<()> {
    let hasher = if digest.sha256().is_some() { Hasher::Sha256(Sha256::new()) } else { Hasher::Sha512(Sha512::new()) };
    let mut checked = Checked { hasher, left: size, to };
    let copied = store.read(digest, &mut checked);
    if checked.left == u64::MAX {
        bail!(InvalidArgument, "{digest}: longer than the {size} bytes that its descriptor says");
    }
    copied.map_err(|e| e.context(format!("read {digest}")))?;
    if checked.left != 0 {
        let length = size - checked.left;
        bail!(InvalidArgument, "{digest}: {length} bytes long, and {size} by its descriptor");
    }
    let found = checked.hasher.finish();
    if found != digest.0 {
        bail!(InvalidArgument, "{digest}: its content has the digest {found}");
    }
    Ok(())
}

enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> String {
        match self {
            Hasher::Sha256(hasher) => text("sha256", &hasher.finalize()),
            Hasher::Sha512(hasher) => text("sha512", &hasher.finalize()),
        }
    }
}

/// The digest of bytes.
pub(super) fn sha256(bytes: &[u8]) -> String {
    text("sha256", &Sha256::digest(bytes))
}

fn text(algorithm: &str, digest: &[u8]) -> String {
    digest.iter().fold(format!("{algorithm}:"), |text, byte| text + &format!("{byte:02x}"))
}

/// Takes as many bytes as are due and hashes them.
struct Checked<'a> {
    hasher: Hasher,
    /// How many bytes are due; the largest number once there were more.
    left: u64,
    to: &'a mut dyn Write,
}

impl Write for Checked<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            self.left = u64::MAX;
            return Err(ErrorKind::FileTooLarge.into());
        };
        self.to.write_all(bytes)?;
        self.hasher.update(bytes);
        self.left = left;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn digests_are_of_two_kinds() {
        let of = |text: &str| Digest::try_from(text.to_owned());
        assert!(of(&format!("sha256:{}", "0a".repeat(32))).unwrap().sha256().is_some());
        assert!(of(&format!("sha512:{}", "0a".repeat(64))).unwrap().sha256().is_none());
        for bad in ["", "sha256", "sha256:", "sha256:../../etc/passwd", "md5:00", "sha384:00", &"ä".repeat(200)] {
            assert_eq!(of(bad).unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
        }
        assert!(of(&format!("sha256:{}", "0A".repeat(32))).is_err());
        assert!(of(&format!("sha512:{}", "0a".repeat(32))).is_err());
    }
}

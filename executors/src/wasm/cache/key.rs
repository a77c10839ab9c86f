//! The names of entries: the module's digest, and everything that decides whether compiled code fits this host and binary.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use sha2::{Digest, Sha256};

use crate::error::{OrKind, Result, bail};
use crate::wasm::MAX_MODULE;
use crate::{Kind, host};

/// How many letters a SHA-256 digest is in hexadecimal.
const DIGEST: usize = 64;

/// The name of a module's entry.
pub(super) fn of(module: &mut File, proposals: &[String]) -> Result<String> {
    named(&digest(module, &mut std::io::sink(), MAX_MODULE)?, proposals)
}

/// The same by the module's SHA-256 digest in hexadecimal. Whoever asks answers for it that the digest is of such a module.
pub(super) fn named(digest: &str, proposals: &[String]) -> Result<String> {
    if !is_digest(digest) {
        bail!(InvalidArgument, "{digest:?} is not a SHA-256 digest");
    }
    Ok(format!("{digest}-{}-{}", build()?, &hex(&Sha256::digest(format!("{proposals:?}")))[..8]))
}

/// Whether a file of that name in the cache is an entry.
pub(super) fn is_entry(name: &str) -> bool {
    name.get(..DIGEST).is_some_and(is_digest)
        && name[DIGEST..].starts_with('-')
        && name[DIGEST..].bytes().all(|byte| byte == b'-' || is_hex(byte))
}

/// Whether the entry of that name was made by this build, which is as [`build`] says.
pub(super) fn is_of(name: &str, build: &str) -> bool {
    name.split('-').nth(1) == Some(build)
}

fn is_digest(text: &str) -> bool {
    text.len() == DIGEST && text.bytes().all(is_hex)
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// The module as a file that nobody can change any more, and its entry's name; `name` is what it was a moment ago.
pub(super) fn sealed(mut module: File, name: String, proposals: &[String]) -> Result<(OwnedFd, String)> {
    // As it comes from an image's layer.
    if host::is_sealed(&module) {
        return Ok((module.into(), name));
    }
    let mut found = String::new();
    let copy = host::sealed_file_by("hybrid-module", |copy| {
        found = digest(&mut module, copy, MAX_MODULE)?;
        Ok(())
    })?;
    Ok((copy, named(&found, proposals)?))
}

/// The digest of a file of at most that many bytes, from where it stands to its end, copied meanwhile; afterwards it stands
/// at its beginning.
pub(super) fn digest(file: &mut File, copy: &mut dyn Write, most: u64) -> Result<String> {
    let what = || "read it";
    let length = file.metadata().or_kind(Kind::Internal, what)?.len();
    if length > most {
        bail!(InvalidArgument, "it has {length} bytes; at most {most} are read");
    }
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let n = match file.read(&mut buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            n => n.or_kind(Kind::Internal, what)?,
        };
        total += n as u64;
        if n == 0 {
            break;
        } else if total > most {
            bail!(InvalidArgument, "it grows while it is read");
        }
        digest.update(&buffer[..n]);
        copy.write_all(&buffer[..n]).or_kind(Kind::Unavailable, || "copy it")?;
    }
    file.rewind().or_kind(Kind::Internal, what)?;
    Ok(hex(&digest.finalize()))
}

/// Wasmtime, this program and the processor, in 16 letters.
pub(super) fn build() -> Result<String> {
    // Another build may have been made with another configuration of Wasmtime, whatever the numbers say.
    let binary = std::fs::metadata("/proc/self/exe").or_kind(Kind::Internal, || "stat /proc/self/exe")?;
    let build = (binary.dev(), binary.ino(), binary.size(), binary.mtime(), binary.mtime_nsec());
    let text = format!("{} {} {build:?} {:?}", runner::WASMTIME, runner::REVISION, processor());
    Ok(hex(&Sha256::digest(text))[..16].to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The processor's features as numbers: code compiled for more of them must not be loaded after a machine moved.
fn processor() -> Vec<u32> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid_count;
        let features = [__cpuid_count(1, 0), __cpuid_count(7, 0), __cpuid_count(7, 1), __cpuid_count(0x8000_0001, 0)];
        // In leaf 1, ebx tells which processor it is asked on, and bit 27 of ecx repeats a choice of the kernel's.
        let [basic, others @ ..] = features;
        let mut words = vec![basic.eax, basic.ecx, basic.edx];
        words.extend(others.iter().flat_map(|leaf| [leaf.ebx, leaf.ecx, leaf.edx]));
        words
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        [rustix::param::linux_hwcap().0, rustix::param::linux_hwcap().1].map(|word| word as u32).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_module_build_and_proposals() {
        let digest = hex(&Sha256::digest(b"module"));
        let name = named(&digest, &[]).unwrap();
        assert!(name.starts_with(&digest) && is_entry(&name) && is_of(&name, &build().unwrap()), "{name}");
        assert!(!is_of(&name, "0123456789abcdef"));
        let other = named(&digest, &["wide-arithmetic".to_owned()]).unwrap();
        assert!(other != name && is_entry(&other) && is_of(&other, &build().unwrap()), "{other}");
    }

    #[test]
    fn what_is_no_digest_is_refused_and_what_is_no_entry_is_left() {
        let digest = "a".repeat(64);
        for bad in ["", "ab", "../../etc", &digest.to_uppercase(), &digest[1..], &format!("{digest}a")] {
            assert_eq!(named(bad, &[]).unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
        }
        for name in ["", "lost+found", &digest, &format!("{digest}-0.lock"), &format!("{digest}-0/"), "ä"] {
            assert!(!is_entry(name), "{name}");
        }
    }

    #[test]
    fn what_can_be_changed_is_copied() {
        let mut module = File::from(host::sealed_file("test", b"module").unwrap());
        let (inode, name) = (module.metadata().unwrap().ino(), of(&mut module, &[]).unwrap());
        let (same, _) = sealed(module, name.clone(), &[]).unwrap();
        assert_eq!(File::from(same).metadata().unwrap().ino(), inode);

        let mut module = tempfile::tempfile().unwrap();
        module.write_all(b"module").unwrap();
        module.rewind().unwrap();
        // It is called by what was copied, whatever it was called before.
        let (copy, found) = sealed(module, "another".to_owned(), &[]).unwrap();
        assert!(found == name && host::is_sealed(&File::from(copy)), "{found}");
    }

    #[test]
    fn a_file_without_end_is_not_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(MAX_MODULE + 1).unwrap();
        let error = of(&mut file, &[]).unwrap_err();
        assert!(error.kind() == Kind::InvalidArgument && error.to_string().contains("at most"), "{error}");
        file.set_len(1 << 20).unwrap();
        assert!(of(&mut file, &[]).is_ok());
    }
}

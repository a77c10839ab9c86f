//! A root file system in memory, written as one image layer.
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use tar::{EntryType, Header};

enum Node {
    Folder(u32),
    File(u32, Vec<u8>),
    Link(&'static str),
}

/// Paths (without a leading `/`) and what lies there; sorted, so that a folder comes before what is in it.
pub(crate) struct Tree(BTreeMap<&'static str, Node>);

impl Tree {
    /// What every image has: mount targets, users and groups, and the oddities that tests of bad input need.
    pub(crate) fn base() -> Tree {
        let mut nodes = BTreeMap::new();
        for folder in ["bin", "data", "dev", "etc", "proc", "root", "run", "sys"] {
            nodes.insert(folder, Node::Folder(0o755));
        }
        nodes.insert("tmp", Node::Folder(0o1777));
        // Absolute and climbing: followed from the host's root both would leave the container.
        nodes.insert("escape", Node::Link("/srv/landing"));
        nodes.insert("escape-up", Node::Link("../../../../../../../srv/landing"));
        Tree(nodes)
            .file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/probe\nprobe:x:1000:1000::/data:/bin/probe\n")
            .file("etc/group", 0o644, "root:x:0:\nprobe:x:1000:\nextra:x:2000:probe\n")
            .file("bin/not-executable", 0o644, "not a program\n")
            .file("bin/no-format", 0o755, "not a program\n")
    }

    /// An image's every entry that a runtime comes to is a symbolic link out of it: by an absolute path, by `..`, round in
    /// circles, by the descriptors and the root of a process. What there is to hit is in [`crate::CANARY`].
    pub(crate) fn hostile() -> Tree {
        const UP: &str = "../../../../../../../../run/hybrid-canary/folder";
        const FILE: &str = "/run/hybrid-canary/file";
        const FOLDER: &str = "/run/hybrid-canary/folder";
        let mut tree = Tree::base();
        for name in ["etc/passwd", "etc/group", "root", "escape", "escape-up"] {
            tree.0.remove(name);
        }
        for folder in ["dev/pts", "etc/ssl", "proc/self", "proc/self/attr", "proc/1", "sys/fs", "sys/kernel", "srv"] {
            tree.0.insert(folder, Node::Folder(0o755));
        }
        for (at, target) in [
            ("cwd", "/proc/self/fd/7"),
            ("cwd-outside", FOLDER),
            ("cwd-root", "/proc/1/root"),
            ("dev/console", FILE),
            ("dev/fd", "/proc/1/root"),
            ("dev/full", "../.."),
            ("dev/mqueue", UP),
            ("dev/null", "/proc/sys/kernel/core_pattern"),
            ("dev/ptmx", "/proc/1/root/run/hybrid-canary/file"),
            ("dev/pts/0", FILE),
            ("dev/pts/ptmx", FILE),
            ("dev/random", "random"),
            ("dev/shm", FOLDER),
            ("dev/stdin", FILE),
            ("dev/stdout", "/proc/sysrq-trigger"),
            ("dev/tty", "/proc/self/fd/3"),
            ("dev/urandom", "/dev/random"),
            ("dev/zero", FILE),
            ("etc/group", "/proc/self/fd/5"),
            ("etc/hostname", "/proc/sys/kernel/core_pattern"),
            ("etc/hosts", "hosts"),
            ("etc/passwd", FILE),
            ("etc/resolv.conf", "../run/hybrid-canary/file"),
            ("proc/1/root", "/"),
            ("proc/keys", FILE),
            ("proc/self/attr/exec", FILE),
            ("proc/self/fd", FOLDER),
            ("proc/self/oom_score_adj", FILE),
            ("proc/sys", FOLDER),
            ("proc/thread-self", "self"),
            ("root", FOLDER),
            ("sys/firmware", UP),
            ("sys/fs/cgroup", FOLDER),
            ("sys/kernel/security", FOLDER),
            ("target-absolute", FOLDER),
            ("target-descriptor", "/proc/self/fd/4"),
            ("target-loop", "target-loop-back"),
            ("target-loop-back", "target-loop"),
            ("target-process", "/proc/1/root/run/hybrid-canary/folder"),
            ("target-slash", "/"),
            ("target-up", UP),
        ] {
            tree.0.insert(at, Node::Link(target));
        }
        tree
    }

    pub(crate) fn file(mut self, path: &'static str, mode: u32, content: impl Into<Vec<u8>>) -> Tree {
        self.0.insert(path, Node::File(mode, content.into()));
        self
    }

    /// The tree as an uncompressed tar archive: owner root, all times zero.
    pub(crate) fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, node) in &self.0 {
            let added = match node {
                Node::Folder(mode) => {
                    let mut header = header(EntryType::Directory, *mode, 0);
                    tar.append_data(&mut header, format!("{path}/"), std::io::empty())
                }
                Node::File(mode, content) => {
                    let mut header = header(EntryType::Regular, *mode, content.len());
                    tar.append_data(&mut header, path, content.as_slice())
                }
                Node::Link(target) => tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target),
            };
            added.with_context(|| format!("adding {path} to the layer"))?;
        }
        tar.into_inner().context("finishing the layer")
    }
}

/// A header that holds nothing of the machine or the hour.
pub(crate) fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

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

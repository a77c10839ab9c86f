//! Mount options of config.json and of containerd's rootfs mounts: words → attributes, propagation and file system parameters.
//!
//! The words are those of mount(8) and of the OCI runtime spec, config.md "Linux mount options".

use std::collections::BTreeSet;

use crate::sys::MountAttr;

/// What a list of mount options asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// A bind mount, and whether of the whole tree below (`rbind`).
    pub bind: Option<Recursive>,
    /// Attributes of the mount itself.
    pub attr: MountAttr,
    /// Attributes of the mount and of all below it (`rro`, `rnosuid`, …).
    pub recursive_attr: MountAttr,
    /// Ids are mapped, of this mount (`idmap`) or of the tree below it too (`ridmap`).
    pub idmap: Option<Recursive>,
    /// A mount that is there is changed (`remount`).
    pub remount: bool,
    /// A tmpfs begins with a copy of what it hides (`tmpcopyup`).
    pub copy_up: bool,
    /// Propagation changes in their order: MS_SHARED, …, and whether of the whole tree below.
    pub propagation: Vec<(u64, Recursive)>,
    /// Parameters for the file system: `key=value`, or a flag.
    pub data: Vec<Parameter>,
}

/// Whether something holds for a mount alone or for the tree below it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recursive {
    No,
    Yes,
}

/// One parameter of a file system (fsconfig(2)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parameter {
    Flag(String),
    Value(String, String),
}

/// A pair of words that set and clear one mount attribute; `r` in front makes them recursive.
struct Attribute {
    set: &'static str,
    clear: &'static str,
    bit: u64,
}

const ATTRIBUTES: [Attribute; 6] = [
    Attribute { set: "ro", clear: "rw", bit: libc::MOUNT_ATTR_RDONLY },
    Attribute { set: "nosuid", clear: "suid", bit: libc::MOUNT_ATTR_NOSUID },
    Attribute { set: "nodev", clear: "dev", bit: libc::MOUNT_ATTR_NODEV },
    Attribute { set: "noexec", clear: "exec", bit: libc::MOUNT_ATTR_NOEXEC },
    Attribute { set: "nodiratime", clear: "diratime", bit: libc::MOUNT_ATTR_NODIRATIME },
    Attribute { set: "nosymfollow", clear: "symfollow", bit: libc::MOUNT_ATTR_NOSYMFOLLOW },
];

/// The access time policies are values of one field, so setting one clears the field first (mount_setattr(2)).
const ATIME: [(&str, u64); 6] = [
    ("relatime", libc::MOUNT_ATTR_RELATIME),
    ("norelatime", libc::MOUNT_ATTR_RELATIME),
    ("noatime", libc::MOUNT_ATTR_NOATIME),
    ("atime", libc::MOUNT_ATTR_RELATIME),
    ("strictatime", libc::MOUNT_ATTR_STRICTATIME),
    ("nostrictatime", libc::MOUNT_ATTR_RELATIME),
];

const PROPAGATION: [(&str, u64); 4] = [
    ("shared", libc::MS_SHARED),
    ("slave", libc::MS_SLAVE),
    ("private", libc::MS_PRIVATE),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// Superblock flags whose mount(8) word is also the kernel's parameter name.
const SUPERBLOCK_FLAGS: [&str; 4] = ["sync", "dirsync", "lazytime", "mand"];

/// Words that mean the default, so that there is nothing to do. Of `iversion` the kernel takes no notice any more: file
/// systems that have a version of inodes have it always.
const DEFAULTS: [&str; 8] = ["defaults", "async", "nolazytime", "nomand", "iversion", "noiversion", "loud", "auto"];

/// Words for what is done beside mounting.
const BESIDE: [&str; 4] = ["idmap", "ridmap", "remount", "tmpcopyup"];

/// The propagation that a word names, with `r` in front for the whole tree.
pub(crate) fn propagation(word: &str) -> Option<(u64, Recursive)> {
    let find = |word: &str| PROPAGATION.iter().find(|(name, _)| *name == word).map(|(_, flag)| *flag);
    find(word).map(|flag| (flag, Recursive::No)).or_else(|| Some((find(word.strip_prefix('r')?)?, Recursive::Yes)))
}

/// Every word that is understood, sorted; parameters of single file systems are not among them.
pub(crate) fn known() -> Vec<String> {
    let attributes = ATTRIBUTES.iter().flat_map(|attribute| [attribute.set, attribute.clear]);
    let attributes = attributes.chain(ATIME.iter().map(|(word, _)| *word));
    let trees = attributes.chain(PROPAGATION.iter().map(|(word, _)| *word)).chain(["bind"]);
    let words = trees.flat_map(|word| [word.to_owned(), format!("r{word}")]);
    let alone = DEFAULTS.into_iter().chain(SUPERBLOCK_FLAGS).chain(BESIDE).chain(["silent"]);
    words.chain(alone.map(str::to_owned)).collect::<BTreeSet<_>>().into_iter().collect()
}

impl Options {
    /// Understands a list of options. Later words win over earlier ones; words that are not known are parameters for the
    /// file system, as with runc.
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Options {
        let mut options = Options::default();
        words.iter().for_each(|word| options.add(word.as_ref()));
        options
    }

    /// The attributes of a mount that is there already, and a bind is a copy of one: what is named, and nothing else but
    /// the access time; with no word for an attribute, those that it has (mount(2), "Remounting an existing mount").
    pub fn of_existing(&self) -> MountAttr {
        if self.attr.is_empty() {
            return self.attr;
        }
        let all = ATTRIBUTES.iter().filter(|attribute| attribute.bit != libc::MOUNT_ATTR_NODIRATIME);
        let all = all.fold(0, |all, attribute| all | attribute.bit);
        MountAttr { clear: self.attr.clear | all & !self.attr.set, ..self.attr }
    }

    /// A parameter that only a file system understands, which a bind has no way to change.
    pub fn only_of_a_file_system(&self) -> Option<&str> {
        self.data.iter().find_map(|parameter| match parameter {
            Parameter::Flag(key) if SUPERBLOCK_FLAGS.contains(&key.as_str()) => None,
            Parameter::Flag(key) | Parameter::Value(key, _) => Some(key.as_str()),
        })
    }

    fn add(&mut self, word: &str) {
        match word {
            "bind" => self.bind = Some(Recursive::No),
            "rbind" => self.bind = Some(Recursive::Yes),
            "idmap" => self.idmap = Some(Recursive::No),
            "ridmap" => self.idmap = Some(Recursive::Yes),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            // Both say that nothing should be logged; fsconfig has no such parameter for most file systems.
            "silent" => {}
            _ if DEFAULTS.contains(&word) => {}
            _ if set_attribute(&mut self.attr, word) => {}
            _ if word.strip_prefix('r').is_some_and(|word| set_attribute(&mut self.recursive_attr, word)) => {}
            _ if SUPERBLOCK_FLAGS.contains(&word) => self.data.push(Parameter::Flag(word.to_owned())),
            _ => {
                if let Some(change) = propagation(word) {
                    self.propagation.push(change);
                } else if !word.is_empty() {
                    self.data.push(match word.split_once('=') {
                        Some((key, value)) => Parameter::Value(key.to_owned(), value.to_owned()),
                        None => Parameter::Flag(word.to_owned()),
                    });
                }
            }
        }
    }
}

/// Applies one attribute word; false if it is none.
fn set_attribute(attr: &mut MountAttr, word: &str) -> bool {
    if let Some((_, value)) = ATIME.iter().find(|(name, _)| *name == word) {
        attr.set = (attr.set & !libc::MOUNT_ATTR__ATIME) | value;
        attr.clear |= libc::MOUNT_ATTR__ATIME;
        return true;
    }
    for attribute in &ATTRIBUTES {
        if word == attribute.set {
            attr.set |= attribute.bit;
            attr.clear &= !attribute.bit;
            return true;
        }
        if word == attribute.clear {
            attr.clear |= attribute.bit;
            attr.set &= !attribute.bit;
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Options {
        Options::parse(words)
    }

    #[test]
    fn words_become_attributes_and_parameters() {
        let options = parse(&["nosuid", "strictatime", "mode=755", "size=65536k", "noswap"]);
        assert_eq!(options.attr.set, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_STRICTATIME);
        assert_eq!(options.attr.clear, libc::MOUNT_ATTR__ATIME);
        assert_eq!(
            options.data,
            [
                Parameter::Value("mode".into(), "755".into()),
                Parameter::Value("size".into(), "65536k".into()),
                Parameter::Flag("noswap".into()),
            ]
        );
    }

    #[test]
    fn later_words_win() {
        let options = parse(&["ro", "rw", "noatime", "relatime"]);
        assert_eq!(options.attr.set, libc::MOUNT_ATTR_RELATIME);
        assert_eq!(options.attr.clear, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR__ATIME);
    }

    #[test]
    fn r_in_front_means_the_whole_tree() {
        let options = parse(&["rbind", "rro", "rslave", "private", "relatime"]);
        assert_eq!(options.bind, Some(Recursive::Yes));
        assert_eq!(options.recursive_attr.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.propagation, [(libc::MS_SLAVE, Recursive::Yes), (libc::MS_PRIVATE, Recursive::No)]);
        assert!(options.data.is_empty());
    }

    #[test]
    fn known_words_are_no_parameters_of_a_file_system() {
        let known = known();
        for word in &known {
            let data = parse(&[word]).data;
            let flag = SUPERBLOCK_FLAGS.contains(&word.as_str());
            assert_eq!(data, if flag { vec![Parameter::Flag(word.clone())] } else { vec![] }, "{word}");
        }
        for word in ["ro", "rro", "rbind", "rslave", "rnosymfollow", "nostrictatime", "lazytime", "defaults", "ridmap"]
        {
            assert!(known.iter().any(|known| known == word), "{word}");
        }
    }

    #[test]
    fn attributes_of_a_mount_that_is_there_are_those_that_are_named() {
        use libc::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY};
        assert_eq!(parse(&["rbind", "rslave"]).of_existing(), MountAttr::default());
        let attr = parse(&["bind", "ro", "nosuid"]).of_existing();
        assert_eq!(attr.set, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID);
        assert_eq!(attr.clear, MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSYMFOLLOW);
        let attr = parse(&["rbind", "rw"]).of_existing();
        assert_eq!((attr.set, attr.clear & MOUNT_ATTR_NOEXEC), (0, MOUNT_ATTR_NOEXEC));
    }

    #[test]
    fn what_a_bind_cannot_change_is_found() {
        assert_eq!(parse(&["rbind", "ro", "sync", "idmap"]).only_of_a_file_system(), None);
        assert_eq!(parse(&["rbind", "size=5"]).only_of_a_file_system(), Some("size"));
    }
}

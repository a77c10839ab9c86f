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

/// Options that are known words of runc's but that hybrid does not do yet.
const UNSUPPORTED: [&str; 4] = ["tmpcopyup", "idmap", "ridmap", "remount"];

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
const SUPERBLOCK_FLAGS: [&str; 5] = ["sync", "dirsync", "lazytime", "mand", "iversion"];

/// Words that mean the default, so that there is nothing to do.
const DEFAULTS: [&str; 7] = ["defaults", "async", "nolazytime", "nomand", "noiversion", "loud", "auto"];

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
    let alone = DEFAULTS.into_iter().chain(SUPERBLOCK_FLAGS).chain(["silent"]);
    words.chain(alone.map(str::to_owned)).collect::<BTreeSet<_>>().into_iter().collect()
}

impl Options {
    /// Understands a list of options. Later words win over earlier ones; words that are not known are parameters for the
    /// file system, as with runc.
    ///
    /// # Errors
    /// The word that is not supported.
    pub fn parse(words: &[String]) -> Result<Options, String> {
        let mut options = Options::default();
        for word in words {
            if UNSUPPORTED.contains(&word.as_str()) {
                return Err(word.clone());
            }
            options.add(word);
        }
        Ok(options)
    }

    fn add(&mut self, word: &str) {
        match word {
            "bind" => self.bind = Some(Recursive::No),
            "rbind" => self.bind = Some(Recursive::Yes),
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
        Options::parse(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()).unwrap()
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
        for word in ["ro", "rro", "rbind", "rslave", "rnosymfollow", "nostrictatime", "lazytime", "defaults"] {
            assert!(known.iter().any(|known| known == word), "{word}");
        }
        for word in UNSUPPORTED {
            assert!(!known.iter().any(|known| known == word), "{word}");
            assert_eq!(Options::parse(&[word.to_owned()]), Err(word.to_owned()));
        }
    }

    #[test]
    fn what_is_not_done_is_named() {
        assert_eq!(Options::parse(&["ro".into(), "tmpcopyup".into()]), Err("tmpcopyup".into()));
    }
}

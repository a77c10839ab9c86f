//! A new instance of a file system as a detached mount: fsopen(2), fsconfig(2), fsmount(2).

use std::ffi::{CString, NulError};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Result;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::options::{Options, Parameter};

/// A file system to make.
pub(crate) struct NewFilesystem {
    pub fstype: CString,
    /// What mountinfo shows as the source; a device for file systems that have one.
    pub source: CString,
    /// Parameters: key and value, or a flag.
    pub parameters: Vec<(CString, Option<CString>)>,
    /// MOUNT_ATTR_* flags.
    pub attr: u64,
}

impl NewFilesystem {
    /// From the words of a mount in a spec.
    pub fn new(fstype: &str, source: &str, options: &Options) -> std::result::Result<Self, NulError> {
        let parameter = |parameter: &Parameter| {
            Ok(match parameter {
                Parameter::Flag(key) => (CString::new(key.as_str())?, None),
                Parameter::Value(key, value) => {
                    // Labels of SELinux have commas in them, so they are quoted where options are one string (mount(8)).
                    let value = if key.ends_with("context") { value.trim_matches('"') } else { value };
                    (CString::new(key.as_str())?, Some(CString::new(value)?))
                }
            })
        };
        Ok(Self {
            fstype: CString::new(fstype)?,
            source: CString::new(source)?,
            parameters: options.data.iter().map(parameter).collect::<std::result::Result<_, NulError>>()?,
            attr: options.attr.set | options.recursive_attr.set,
        })
    }
}

/// Makes the file system, detached. System calls only: the child uses it too.
pub(crate) fn make_filesystem(filesystem: &NewFilesystem) -> Result<OwnedFd> {
    let context = fsopen(filesystem.fstype.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), c"source", filesystem.source.as_c_str())?;
    for (key, value) in &filesystem.parameters {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key.as_c_str(), value.as_c_str())?,
            None => fsconfig_set_flag(context.as_fd(), key.as_c_str())?,
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(filesystem.attr as u32))
}

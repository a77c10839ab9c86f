//! A new instance of a file system as a detached mount: fsopen(2), fsconfig(2), fsmount(2).

use std::ffi::{CStr, CString, NulError};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Result;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, fspick,
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

/// Makes the file system, detached, with one parameter more if that is given. System calls only: the child uses it too.
pub(crate) fn make_filesystem(filesystem: &NewFilesystem, more: Option<(&CStr, &CStr)>) -> Result<OwnedFd> {
    mount_of(create(filesystem, more)?.as_fd(), filesystem.attr)
}

/// The mount of a file system that was created, with MOUNT_ATTR_* flags.
pub(crate) fn mount_of(context: BorrowedFd<'_>, attr: u64) -> Result<OwnedFd> {
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(attr as u32))
}

/// Makes the file system, not yet mounted.
pub(crate) fn create(filesystem: &NewFilesystem, more: Option<(&CStr, &CStr)>) -> Result<OwnedFd> {
    let context = fsopen(filesystem.fstype.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), c"source", filesystem.source.as_c_str())?;
    if let Some((key, value)) = more {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    configure(context.as_fd(), filesystem)?;
    fsconfig_create(context.as_fd())?;
    Ok(context)
}

/// Gives the file system of a mount other parameters (mount(8), "remount"). Without any it is left alone.
pub(crate) fn reconfigure(mount: BorrowedFd<'_>, changes: &NewFilesystem) -> Result<()> {
    if changes.parameters.is_empty() {
        return Ok(());
    }
    let context = fspick(mount, c"", FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)?;
    configure(context.as_fd(), changes)?;
    fsconfig_reconfigure(context.as_fd())
}

fn configure(context: BorrowedFd<'_>, filesystem: &NewFilesystem) -> Result<()> {
    filesystem.parameters.iter().try_for_each(|(key, value)| match value {
        Some(value) => fsconfig_set_string(context, key.as_c_str(), value.as_c_str()),
        None => fsconfig_set_flag(context, key.as_c_str()),
    })
}

//! The last step: the program is found, and executed.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::FileType;
use rustix::io::{Errno, Result};

use super::Context;
use crate::native::step::Program;
use crate::sys;

impl Context<'_> {
    pub(super) fn find_program(&mut self) -> Result<()> {
        let Program::Paths(candidates) = &self.plan.program else { return Ok(()) };
        let mut worst = Errno::NOENT;
        for (index, candidate) in candidates.iter().enumerate() {
            match executable(candidate) {
                Ok(()) => {
                    self.found = index;
                    return Ok(());
                }
                // A name that is there but can't be executed says more than one that isn't (execvp(3)).
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => worst = errno,
            }
        }
        Err(worst)
    }

    /// Once: a seccomp filter may have been loaded since, which need not allow it.
    pub(super) fn close_for_exec(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        match &self.plan.program {
            // Closed, not just on execve: the path, or the interpreter that the file names, may lead to them.
            Program::Paths(_) => self.close_all_but(&[]),
            Program::File { .. } => sys::close_range_on_exec(3),
        }
    }

    pub(super) fn exec(&mut self) -> Errno {
        let plan = self.plan;
        if let Err(errno) = self.close_for_exec() {
            return errno;
        }
        let (file, pass) = match &plan.program {
            Program::Paths(candidates) => {
                let Some(path) = candidates.get(self.found) else { return Errno::NOENT };
                return sys::execve(path, &plan.argv, &plan.envp);
            }
            Program::File { file, pass } => (file, pass),
        };
        // What the plan passes was opened above the numbers it is passed as, so nothing is overwritten; the guest's root
        // comes last.
        let descriptors = pass.iter().map(AsFd::as_fd).chain(self.guest_root);
        for (number, descriptor) in (3..).zip(descriptors) {
            if let Err(errno) = sys::dup2(descriptor, number) {
                return errno;
            }
        }
        sys::fexecve(file.as_fd(), &plan.argv, &plan.envp)
    }
}

/// Whether a file can be executed by this process as it is now: execve(2)'s own conditions, without executing.
fn executable(path: &CStr) -> Result<()> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
}

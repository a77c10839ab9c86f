//! A process's environment, and where its program is looked for.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::path::Path;

use oci_spec::runtime::Process;

use super::plan::text;
use crate::bundle::{args, variable};
use crate::error::{Result, bail};
use crate::rootfs::open_inside;

/// The spec's environment; of a variable that is there several times the last, as with runc. HOME is added from /etc/passwd below `root` where the spec has none, as runc and crun do; but
/// not for a guest, which has what its spec says and no more, as with Wasmtime and runwasi.
pub(crate) fn environment(process: &Process, root: BorrowedFd<'_>, for_guest: bool) -> Vec<String> {
    let mut environment = last_of_each(process.env().as_deref().unwrap_or_default());
    if !for_guest && variable(process, "HOME").is_none() {
        let home = home(root, process.user().uid()).unwrap_or_else(|| "/".to_owned());
        environment.push(format!("HOME={home}"));
    }
    environment
}

fn last_of_each(entries: &[String]) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut seen = HashSet::new();
    let mut last: Vec<String> = entries.iter().rev().filter(|entry| seen.insert(name(entry))).cloned().collect();
    last.reverse();
    last
}

/// The home folder of a user in /etc/passwd below `root` (passwd(5)).
fn home(root: BorrowedFd<'_>, uid: u32) -> Option<String> {
    use std::io::Read;
    /// As much of the file as is read: an image could hold anything.
    const MAX: u64 = 1 << 20;
    let mut text = String::new();
    open_inside(root, Path::new("/etc/passwd")).ok()?.take(MAX).read_to_string(&mut text).ok()?;
    let mut users = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let user = users.find(|fields| fields.get(2).is_some_and(|id| *id == uid.to_string()))?;
    user.get(5).filter(|home| !home.is_empty() && !home.contains('\0')).map(|home| (*home).to_owned())
}

/// Where `args[0]` may be: itself if it has a slash, else in each folder of the container's PATH (execvp(3)).
pub(super) fn candidates(process: &Process, environment: &[String]) -> Result<Vec<CString>> {
    let Some(program) = args(process).first() else { bail!(InvalidArgument, "process.args: empty") };
    let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    search(program, path).iter().map(|path| text(path, "process.args")).collect()
}

/// The paths to try for a program, in order. An unset PATH is the usual default; relative folders in it are skipped, as a
/// program found by the current folder is a known trap.
pub(crate) fn search(program: &str, path: Option<&str>) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path.split(':')
        .filter(|folder| folder.starts_with('/'))
        .map(|folder| format!("{}/{program}", folder.trim_end_matches('/')))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_a_variable_holds() {
        let entries = ["A=1", "B=2", "A=3", "C", "A=", "D=x=y"].map(str::to_owned);
        assert_eq!(last_of_each(&entries), ["B=2", "C", "A=", "D=x=y"]);
    }

    #[test]
    fn programs_are_looked_for_in_path() {
        assert_eq!(search("/bin/a", Some("/x")), ["/bin/a"]);
        assert_eq!(search("./a", Some("/x")), ["./a"]);
        assert_eq!(search("a", Some("/x:.:/y/:")), ["/x/a", "/y/a"]);
        assert_eq!(search("a", None).len(), 6);
    }
}

//! linux.cgroupsPath → a unit and where its cgroup is.

use std::path::{Path, PathBuf};

use crate::error::{Result, bail};

/// The slice of a container whose path names none.
const DEFAULT_SLICE: &str = "system.slice";
/// systemd's CGROUP_DELEGATION.md, "Three Scenarios".
const HYBRID: &str = "/sys/fs/cgroup/unified";

const SLICE: &str = ".slice";

/// A unit's name may not be longer (systemd.unit(5), "Description").
const MAX_LENGTH: usize = 255;

/// A transient unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    slice: String,
    name: String,
    path: String,
}

impl Unit {
    /// The unit of a container's path: `slice:prefix:name` is the scope `prefix-name.scope` in that slice, or the slice
    /// `name` if that ends in `.slice`. `None` for a path of folders, which is for `asked` to refuse: the runtime option
    /// SystemdCgroup. With that, no path is `hybrid-<id>.scope` in system.slice.
    ///
    /// # Errors
    /// InvalidArgument for what can't be a unit's or slice's name.
    pub fn of(id: &str, path: Option<&Path>, asked: bool) -> Result<Option<Unit>> {
        let text = path.map(Path::to_string_lossy).unwrap_or_default();
        if text.is_empty() {
            return asked.then(|| Self::default_of(id)).transpose();
        }
        let parts: Vec<&str> = text.split(':').collect();
        match parts[..] {
            [slice, prefix, name] if asked || !text.contains('/') => Self::new(slice, prefix, name).map(Some),
            _ if asked => bail!(
                InvalidArgument,
                "linux.cgroupsPath: {text}: the runtime option SystemdCgroup wants slice:prefix:name"
            ),
            _ => Ok(None),
        }
    }

    /// The unit of a container without a path.
    pub fn default_of(id: &str) -> Result<Unit> {
        Self::new("", "hybrid", id)
    }

    fn new(slice: &str, prefix: &str, name: &str) -> Result<Unit> {
        let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
        let Some(parent) = expand(slice) else {
            bail!(InvalidArgument, "linux.cgroupsPath: {slice:?} is no slice, such as machine.slice or a-b.slice")
        };
        let is_slice = name.ends_with(SLICE);
        let name = if is_slice { name.to_owned() } else { format!("{prefix}-{name}.scope") };
        if name.len() > MAX_LENGTH || !name.chars().all(is_allowed) {
            bail!(InvalidArgument, "linux.cgroupsPath: {name:?} is no name of a unit");
        }
        let path = format!("{parent}{}", escape(&name));
        if is_slice && expand(&name).is_none_or(|own| own.trim_end_matches('/') != path) {
            bail!(InvalidArgument, "linux.cgroupsPath: {name} is not in {slice}, by its name");
        }
        Ok(Unit { slice: slice.to_owned(), name, path })
    }

    pub fn slice(&self) -> &str {
        &self.slice
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its cgroup, relative to the root of each hierarchy.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its cgroup in the hierarchy of v2 that systemd keeps beside those of v1 ("hybrid"), where it does.
    pub fn hybrid_folder(&self) -> Option<PathBuf> {
        let folder = Path::new(HYBRID).join(&self.path);
        folder.join("cgroup.procs").exists().then_some(folder)
    }

    pub fn is_slice(&self) -> bool {
        self.name.ends_with(SLICE)
    }
}

/// What a unit's name may consist of (systemd.unit(5), "Description").
fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || ":-_.\\@".contains(c)
}

/// The folder of a slice with a `/` behind each part, empty for the root: `a-b.slice` is `a.slice/a-b.slice/`
/// (systemd.slice(5)).
fn expand(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(SLICE)?;
    if name == "-" {
        return Some(String::new());
    }
    if slice.len() > MAX_LENGTH || !name.chars().all(is_allowed) || name.split('-').any(str::is_empty) {
        return None;
    }
    let ends = name.match_indices('-').map(|(end, _)| end).chain([name.len()]);
    Some(
        ends.filter_map(|end| name.get(..end))
            .map(|parent| format!("{}/", escape(&format!("{parent}{SLICE}"))))
            .collect(),
    )
}

/// A unit's name as the name of its cgroup: what would look like a file of the kernel's gets a `_` in front
/// (CGROUP_DELEGATION.md; cg_escape in systemd).
fn escape(name: &str) -> String {
    const CONTROLLERS: [&str; 9] = ["cgroup", "cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids"];
    let controller = name.split('.').next().unwrap_or_default();
    if name.starts_with(['_', '.']) || CONTROLLERS.contains(&controller) {
        return format!("_{name}");
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, asked: bool) -> Result<Option<Unit>> {
        Unit::of("box", Some(Path::new(path)), asked)
    }

    #[test]
    fn a_path_of_three_parts_is_a_unit() {
        for (path, slice, name, folder) in [
            ("system.slice:docker:1", "system.slice", "docker-1.scope", "system.slice/docker-1.scope"),
            (":docker:1", "system.slice", "docker-1.scope", "system.slice/docker-1.scope"),
            ("-.slice:docker:1", "-.slice", "docker-1.scope", "docker-1.scope"),
            ("a-b-c.slice:p:n", "a-b-c.slice", "p-n.scope", "a.slice/a-b.slice/a-b-c.slice/p-n.scope"),
            ("a.slice::n", "a.slice", "-n.scope", "a.slice/-n.scope"),
            ("a.slice:p:a-b.slice", "a.slice", "a-b.slice", "a.slice/a-b.slice"),
            ("-.slice:p:a.slice", "-.slice", "a.slice", "a.slice"),
            ("memory.slice:_p:n", "memory.slice", "_p-n.scope", "_memory.slice/__p-n.scope"),
            ("a.slice:p:n.slice.scope", "a.slice", "p-n.slice.scope.scope", "a.slice/p-n.slice.scope.scope"),
        ] {
            for asked in [false, true] {
                let unit = of(path, asked).unwrap().unwrap();
                assert_eq!((unit.slice(), unit.name(), unit.path()), (slice, name, folder), "{path}");
            }
        }
    }

    #[test]
    fn without_a_path_it_takes_the_option() {
        for path in [None, Some(Path::new(""))] {
            assert_eq!(Unit::of("box", path, false).unwrap(), None);
            let unit = Unit::of("box", path, true).unwrap().unwrap();
            assert_eq!(unit.path(), "system.slice/hybrid-box.scope");
        }
    }

    #[test]
    fn a_path_of_folders_is_none() {
        for path in ["/default/box", "default/box", "/a:b:c", "a/b:c:d", "a:b", "a:b:c:d"] {
            assert_eq!(of(path, false).unwrap(), None, "{path}");
            let error = of(path, true).unwrap_err();
            assert_eq!(error.kind(), crate::Kind::InvalidArgument);
            assert!(error.to_string().contains("linux.cgroupsPath"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_a_unit_is_refused() {
        let long = format!("a.slice:p:{}", "n".repeat(250));
        for path in [
            "a:p:n",
            "-:p:n",
            ".slice:p:n",
            "-a.slice:p:n",
            "a-.slice:p:n",
            "a--b.slice:p:n",
            "a.slice:p:n n",
            "a.slice:p:n\0",
            "a.slice:p:n'",
            "a.slice:p:b.slice",
            "a.slice:p:.slice",
            "a-b.slice:p:a-c.slice",
            &long,
            "../a.slice:p:n",
            "a.slice:../p:n",
        ] {
            let asked = path.contains('/');
            assert_eq!(of(path, asked).unwrap_err().kind(), crate::Kind::InvalidArgument, "{path}");
        }
    }
}

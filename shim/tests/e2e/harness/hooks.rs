//! OCI hooks that write down what they were given (`test-images/programs/hook.c`).
use super::fifos::Late;
use super::spec::Spec;
use super::stream::Stream;
use super::{Containerd, Test};
use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, FileType, mknodat};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a container finds the folder of the hooks.
const INSIDE: &str = "/run/hooks";

/// A folder with the hook's program and what hooks have recorded.
pub struct Hooks {
    folder: PathBuf,
}

/// What one hook was given.
#[derive(Debug, Default)]
pub struct Record {
    pub name: String,
    values: HashMap<String, Vec<String>>,
}

impl Hooks {
    pub fn new(test: &Test) -> Result<Hooks> {
        Hooks::below(test.containerd)
    }

    fn below(containerd: &Containerd) -> Result<Hooks> {
        let folder = containerd.fresh_path("hooks");
        fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
        // Linked, not written: a program that was just written may be busy.
        fs::hard_link(containerd.hook()?, folder.join("hook")).context("linking the hook")?;
        let hooks = Hooks { folder };
        for path in [hooks.path("record"), hooks.folder.clone()] {
            OpenOptions::new().create(true).append(true).open(hooks.path("record")).context("making the record")?;
            // For a hook that is not root's.
            fs::set_permissions(&path, Permissions::from_mode(0o777)).context("opening it to all")?;
        }
        Ok(hooks)
    }

    /// A file of the folder, as the host knows it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A hook on the host, with these operations after its record.
    pub fn host(&self, name: &str, operations: &[&str]) -> Value {
        hook(&self.folder, name, operations)
    }

    /// The same hook where a container finds it.
    pub fn inside(&self, name: &str, operations: &[&str]) -> Value {
        hook(Path::new(INSIDE), name, operations)
    }

    /// A script on the host, which records its name, and its state as if on stdin.
    pub fn script(&self, name: &str) -> Result<Value> {
        let (path, record) = (self.path(name), self.path("record"));
        let bytes = self.path(&format!("{name}.bytes"));
        fs::write(&bytes, format!("#!/bin/sh\necho \"hook $1\nstdin $(cat)\" >>{}\n", record.display()))
            .context("writing a script")?;
        let mut install = Command::new("install");
        super::command::output(install.args(["-m", "0755"]).arg(&bytes).arg(&path), b"")?.exits(0)?;
        Ok(json!({"path": path, "args": ["ignored", name]}))
    }

    /// The spec with these hooks, and the folder in the container.
    pub fn add<'a>(&self, spec: Spec<'a>, hooks: Value) -> Result<Spec<'a>> {
        let mount = json!({"destination": INSIDE, "type": "bind", "source": self.folder, "options": ["rbind"]});
        spec.mount(mount)?.set("/hooks", hooks)
    }

    /// What was recorded so far.
    pub fn records(&self) -> Result<Vec<Record>> {
        let text = fs::read_to_string(self.path("record")).context("reading the record")?;
        let mut records: Vec<Record> = Vec::new();
        for line in text.lines() {
            let (key, value) = line.split_once(' ').with_context(|| format!("a key and a value: {line:?}"))?;
            if key == "hook" {
                records.push(Record { name: value.to_owned(), ..Default::default() });
            }
            let record = records.last_mut().with_context(|| format!("{line:?} before any hook"))?;
            record.values.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        Ok(records)
    }

    /// The names of the hooks that have run, in their order.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(self.records()?.into_iter().map(|record| record.name).collect())
    }

    /// Fails unless these hooks have run, in this order.
    pub fn ran(&self, names: &[&str]) -> Result<()> {
        let ran = self.names()?;
        ensure!(ran == names, "{ran:?} have run, not {names:?}");
        Ok(())
    }

    /// Makes a fifo in the folder; returns its path, and what is written to it, read from the start.
    pub fn fifo(&self, name: &str) -> Result<(String, Stream)> {
        let path = self.path(name);
        mknodat(CWD, &path, FileType::Fifo, 0o666.into(), 0).context("making a fifo")?;
        Ok((path.display().to_string(), Stream::read_from(Late::open(&path))))
    }

    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| format!("removing {}", self.folder.display()))
    }
}

/// Its `argv[0]` is the name and not the path; its environment is two variables.
fn hook(folder: &Path, name: &str, operations: &[&str]) -> Value {
    let record = folder.join("record").display().to_string();
    let args: Vec<&str> = [&[name, &record], operations].concat();
    json!({"path": folder.join("hook"), "args": args, "env": [format!("HOOK={name}"), "OTHER=a b"]})
}

impl Record {
    /// The values of a key.
    pub fn all(&self, key: &str) -> Vec<&str> {
        self.values.get(key).into_iter().flatten().map(String::as_str).collect()
    }

    /// The value of a key that has one.
    pub fn one(&self, key: &str) -> Result<&str> {
        match self.all(key)[..] {
            [value] => Ok(value),
            ref values => anyhow::bail!("{}: {key} is {values:?}", self.name),
        }
    }

    /// The container's state, which it had on stdin.
    pub fn state(&self) -> Result<Value> {
        serde_json::from_str(self.one("stdin")?).with_context(|| format!("{}: decoding the state", self.name))
    }

    /// Its namespaces, as links such as `uts:[4026531838]`.
    pub fn namespaces(&self) -> Vec<&str> {
        self.all("ns")
    }

    /// The fields of a line of /proc/self/status, such as `CapEff`.
    pub fn status(&self, key: &str) -> Result<String> {
        let lines = self.all("status");
        let line = lines.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        Ok(line.with_context(|| format!("no {key} in {lines:?}"))?.trim().replace('\t', " "))
    }
}

/// The namespaces of a process, in the order of a record.
pub fn namespaces_of(pid: u32) -> Result<Vec<String>> {
    let link = |kind: &str| {
        let path = format!("/proc/{pid}/ns/{kind}");
        let link = fs::read_link(&path).with_context(|| format!("reading {path}"))?;
        Ok(link.display().to_string())
    };
    ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"].into_iter().map(link).collect()
}

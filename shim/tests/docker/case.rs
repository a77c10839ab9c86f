//! A test as the themes write it down, and what it is given when it runs.
use crate::engine::Engine;
use crate::harness::case::CaseOf;
use crate::harness::command::{Output, Running, output};
use crate::harness::{Kind, leaks};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A test, not yet bound to a Docker Engine.
pub type Case = CaseOf<fn(&Test) -> Result<()>>;

impl Case {
    /// Runs the test and looks for what it left behind.
    pub fn run(&self, engine: &Engine, kind: Kind, number: usize) -> Result<()> {
        let _turn = self.turn();
        let test = Test { engine, kind, name: self.name_of(kind, number), ids: RefCell::default() };
        let result = (self.body)(&test).and_then(|()| test.nothing_left());
        if result.is_err() {
            test.remove_everything();
        }
        result
    }
}

/// A running test.
pub struct Test<'a> {
    pub engine: &'a Engine,
    pub kind: Kind,
    /// The name of the test's container, unique, and the beginning of the names of all it makes.
    pub name: String,
    /// The files in which `docker run` has written the containers' ids.
    ids: RefCell<Vec<PathBuf>>,
}

impl Test<'_> {
    /// `docker run` of the image of the test's kind, with these options and arguments for the probe.
    pub fn run(&self, options: &[&str], arguments: &[&str]) -> Command {
        self.run_as(&self.name, self.kind.image_name(), options, arguments)
    }

    /// The same as a container of another name, and of any image.
    pub fn run_as(&self, name: &str, image: &str, options: &[&str], arguments: &[&str]) -> Command {
        let id = self.engine.fresh_path("id");
        let mut command = self.engine.docker(&["run", "--name", name, "--runtime"]);
        command.arg(self.engine.containerd.runtime.name()).arg("--cidfile").arg(&id).args(options);
        command.arg(format!("localhost/hybrid/{image}")).args(arguments);
        self.ids.borrow_mut().push(id);
        command
    }

    /// Runs a container in the foreground to its end; then it is gone.
    pub fn output(&self, options: &[&str], arguments: &[&str]) -> Result<Output> {
        output(&mut self.run(&[&["--rm"], options].concat(), arguments), b"")
    }

    /// Starts a container in the foreground and waits until the probe has said that it is ready.
    pub fn ready(&self, options: &[&str], arguments: &[&str]) -> Result<Running> {
        let running = Running::spawn(&mut self.run(&[&["--rm"], options].concat(), arguments))?;
        running.wait_for("ready")?;
        Ok(running)
    }

    /// Starts a container in the background; it stays until it is removed.
    pub fn detach(&self, options: &[&str], arguments: &[&str]) -> Result<()> {
        output(&mut self.run(&[&["--detach"], options].concat(), arguments), b"")?.exits(0).map(drop)
    }

    /// `docker exec` in the test's container, of the probe.
    pub fn exec(&self, options: &[&str], arguments: &[&str]) -> Command {
        self.exec_program(options, &[&[self.kind.program()], arguments].concat())
    }

    /// The same of any program.
    pub fn exec_program(&self, options: &[&str], arguments: &[&str]) -> Command {
        let mut command = self.engine.docker(&["exec"]);
        command.args(options).arg(&self.name).args(arguments);
        command
    }

    /// Runs `docker VERB OPTION... <the test's container>`; an exit code other than 0 is an error.
    pub fn docker(&self, arguments: &[&str]) -> Result<Output> {
        output(self.engine.docker(arguments).arg(&self.name), b"")?.exits(0)
    }

    /// What `docker inspect` shows of the container at this place (a JSON pointer).
    pub fn inspect(&self, pointer: &str) -> Result<Value> {
        let shown = self.docker(&["inspect", "--format", "{{json .}}"])?.stdout;
        let shown: Value = serde_json::from_str(&shown).context("decoding what docker inspect shows")?;
        shown.pointer(pointer).cloned().with_context(|| format!("no {pointer} in {shown}"))
    }

    /// The pid of the container's init.
    pub fn pid(&self) -> Result<u32> {
        let pid = self.inspect("/State/Pid")?.as_u64().context("the pid is a number")?;
        ensure!(pid > 0, "{} does not run", self.name);
        Ok(pid as u32)
    }

    /// What a file of the container's cgroup holds: on v1 of this controller's.
    pub fn cgroup(&self, controller: &str, v1: &str, v2: &str) -> Result<String> {
        let list = format!("/proc/{}/cgroup", self.pid()?);
        let list = fs::read_to_string(&list).with_context(|| format!("reading {list}"))?;
        for line in list.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                bail!("no cgroup: {line}");
            };
            let file = match controllers {
                // Beside v1 hierarchies the unified one has no controllers, and none of their files.
                "" => format!("/sys/fs/cgroup{path}/{v2}"),
                _ if controllers.split(',').any(|name| name == controller) => {
                    format!("/sys/fs/cgroup/{controllers}{path}/{v1}")
                }
                _ => continue,
            };
            if Path::new(&file).exists() {
                return fs::read_to_string(&file).with_context(|| format!("reading {file}"));
            }
        }
        bail!("neither {v1} nor {v2} in\n{list}")
    }

    /// Removes the container, killing what runs in it.
    pub fn remove(&self) -> Result<()> {
        self.docker(&["rm", "--force", "--volumes"]).map(drop)
    }

    /// The ids of the containers that were made; no file, no container.
    fn ids(&self) -> Vec<String> {
        self.ids.borrow().iter().filter_map(|path| fs::read_to_string(path).ok()).collect()
    }

    fn nothing_left(&self) -> Result<()> {
        let containers = output(&mut self.engine.docker(&["ps", "--all", "--quiet", "--no-trunc"]), b"")?.exits(0)?;
        for id in self.ids() {
            ensure!(!containers.stdout.contains(&id), "left behind: container {id}");
            leaks::none_of(&self.engine.containerd, &id)?;
        }
        Ok(())
    }

    /// After a failure: so that one fault does not show as many.
    fn remove_everything(&self) {
        for id in self.ids() {
            let removed = output(&mut self.engine.docker(&["rm", "--force", "--volumes", &id]), b"");
            if let Err(error) = removed {
                eprintln!("{}: cleaning up after a failure: {error:#}", self.name);
            }
        }
    }
}

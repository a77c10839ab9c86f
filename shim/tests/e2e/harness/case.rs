//! A test as the themes write it down, and what it is given when it runs.
use super::direct::Direct;
use super::isolated::{LINES, on_systemd};
use super::run::Run;
use super::spec::Spec;
use super::task::Task;
use super::{Containerd, Runtime, leaks};
use anyhow::{Context, Result, anyhow};
use containerd_shim_protos::api::CreateTaskRequest;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What a container of a test runs: the same probe as a Linux program, a core module or a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Linux,
    Core,
    Component,
}

impl Kind {
    pub const ALL: &[Kind] = &[Kind::Linux, Kind::Core, Kind::Component];
    pub const WASM: &[Kind] = &[Kind::Core, Kind::Component];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Linux => "linux",
            Kind::Core => "core",
            Kind::Component => "component",
        }
    }

    /// The last part of the image's name.
    pub fn image_name(self) -> &'static str {
        match self {
            Kind::Linux => "linux",
            Kind::Core => "wasm-core",
            Kind::Component => "wasm-component",
        }
    }

    pub fn image(self) -> String {
        format!("localhost/hybrid/{}:latest", self.image_name())
    }

    /// The path of the probe in the image.
    pub fn program(self) -> &'static str {
        match self {
            Kind::Linux => "/bin/probe",
            Kind::Core | Kind::Component => "/probe.wasm",
        }
    }

    /// The exit code a guest's `exit(code)` arrives as: a 0.2 component can only say whether it succeeded
    /// (`wasi:cli/exit` takes a result without a number).
    pub fn code(self, code: i32) -> i32 {
        if self == Kind::Component { i32::from(code != 0) } else { code }
    }
}

/// What a test does.
pub type Body = fn(&Test) -> Result<()>;

/// Whether the host has AppArmor.
pub fn has_apparmor() -> bool {
    static ENABLED: LazyLock<bool> = LazyLock::new(|| {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        enabled.is_ok_and(|text| text.starts_with('Y'))
    });
    *ENABLED
}

/// A test, not yet bound to a containerd.
pub type Case = CaseOf<Body>;

/// A test whose body is a `B`, which says what it is given.
#[derive(Clone, Copy)]
pub struct CaseOf<B> {
    pub name: &'static str,
    pub kinds: &'static [Kind],
    /// Whether runc's shim is expected to do the same.
    pub hybrid_only: bool,
    /// Whether nothing else may run meanwhile.
    pub exclusive: bool,
    /// Whether it runs only when it is asked for (`--ignored`).
    pub ignored: bool,
    /// Whether it means something on the newest release line.
    pub on_newest: bool,
    /// Whether it means something on older ones.
    pub on_older: bool,
    /// Whether it takes a host whose process 1 is systemd.
    pub on_systemd: bool,
    /// Whether it takes a host with AppArmor.
    pub on_apparmor: bool,
    pub body: B,
}

impl<B: Copy> CaseOf<B> {
    /// A test of Linux containers that runc passes as well.
    pub const fn new(name: &'static str, body: B) -> Self {
        let kinds = &[Kind::Linux];
        CaseOf {
            name,
            kinds,
            hybrid_only: false,
            exclusive: false,
            ignored: false,
            on_newest: true,
            on_older: true,
            on_systemd: false,
            on_apparmor: false,
            body,
        }
    }

    /// The test runs once for each of `kinds`.
    pub const fn kinds(mut self, kinds: &'static [Kind]) -> Self {
        self.kinds = kinds;
        self
    }

    /// The test runs for Linux, core module and component.
    pub const fn all(self) -> Self {
        self.kinds(Kind::ALL)
    }

    pub const fn hybrid_only(mut self) -> Self {
        self.hybrid_only = true;
        self
    }

    pub const fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// It takes long, and runs only when it is asked for.
    pub const fn ignored(mut self) -> Self {
        self.ignored = true;
        self
    }

    /// It is about what changes with the newest release line.
    pub const fn before_newest(mut self) -> Self {
        self.on_newest = false;
        self
    }

    /// It takes long and is about nothing that another release line does otherwise.
    pub const fn only_newest(mut self) -> Self {
        self.on_older = false;
        self
    }

    /// It takes a host whose process 1 is systemd, and is skipped elsewhere.
    pub const fn on_systemd(mut self) -> Self {
        self.on_systemd = true;
        self
    }

    /// It takes a host with AppArmor, and is ignored elsewhere.
    pub const fn on_apparmor(mut self) -> Self {
        self.on_apparmor = true;
        self
    }

    /// Whether it is left out unless it is asked for.
    pub fn is_ignored(&self) -> bool {
        self.ignored || self.on_apparmor && !has_apparmor() || self.on_systemd != on_systemd()
    }

    /// Whether the test means something for this kind under this runtime on this release line.
    pub fn runs(&self, kind: Kind, runtime: Runtime, line: &str) -> bool {
        let newest = LINES.last() == Some(&line);
        (if newest { self.on_newest } else { self.on_older }) && self.suits(kind, runtime)
    }

    /// Whether the test means something for this kind under this runtime.
    pub fn suits(&self, kind: Kind, runtime: Runtime) -> bool {
        runtime == Runtime::Hybrid || (kind == Kind::Linux && !self.hybrid_only)
    }

    /// The unique name of the `number`th test.
    pub fn name_of(&self, kind: Kind, number: usize) -> String {
        format!("t{number}-{}-{}", self.name.replace('_', "-"), kind.name())
    }

    /// Waits until the test may run, which it may as long as this is held.
    pub fn turn(&self) -> Turn {
        static ALONE: RwLock<()> = RwLock::new(());
        // A test that panicked has told nothing false about the lock.
        if self.exclusive {
            Turn::Alone(ALONE.write().unwrap_or_else(|poisoned| poisoned.into_inner()))
        } else {
            Turn::Shared(ALONE.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
        }
    }
}

/// The permission to run, beside other tests or alone.
pub enum Turn {
    Shared(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>),
}

impl Case {
    /// Runs the test and looks for what it left behind.
    pub fn run(&self, containerd: &Containerd, kind: Kind, number: usize) -> Result<()> {
        let _turn = self.turn();
        let test = Test { containerd, kind, id: self.name_of(kind, number) };
        let result = catch_unwind(AssertUnwindSafe(|| (self.body)(&test))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(anyhow!("{}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panic")))
        });
        let result = result.and_then(|()| leaks::none_of(containerd, &test.id));
        if result.is_err() {
            test.remove_everything();
        }
        result
    }
}

/// A running test.
pub struct Test<'a> {
    pub containerd: &'a Containerd,
    pub kind: Kind,
    /// The id of the test's container, unique, and the beginning of the ids of all its containers.
    pub id: String,
}

impl<'a> Test<'a> {
    pub fn runtime(&self) -> Runtime {
        self.containerd.runtime
    }

    /// The id of a further container of this test.
    pub fn other(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.id)
    }

    /// `ctr run` of the test's image with these arguments for the probe.
    pub fn run(&self, arguments: &[&str]) -> Run<'a> {
        Run::probe(self.containerd, self.kind, &self.id, arguments)
    }

    /// `ctr run` of another image.
    pub fn run_image(&self, name: &str, arguments: &[&str]) -> Run<'a> {
        Run::image(self.containerd, &format!("localhost/hybrid/{name}:latest"), &self.id).arguments(arguments)
    }

    /// The spec `ctr` gives containers by default, on the root file system of the test's image, to change at will.
    pub fn spec(&self, arguments: &[&str]) -> Result<Spec<'a>> {
        Spec::default(self.containerd, self.kind, &self.id, arguments)
    }

    /// The kinds that the runtime under test knows.
    pub fn known_kinds(&self) -> &'static [Kind] {
        if self.runtime() == Runtime::Hybrid { Kind::ALL } else { &[Kind::Linux] }
    }

    /// A bundle for the shim to be called on without containerd in between.
    pub fn direct(&self) -> Result<Direct<'a>> {
        Direct::new(self.containerd, self.runtime(), &self.id)
    }

    /// A running task with the probe as init, by direct calls.
    pub fn task(&self, arguments: &[&str]) -> Result<Task<'a>> {
        self.task_of(self.spec(arguments)?)
    }

    /// The same from a spec.
    pub fn task_of(&self, spec: Spec<'a>) -> Result<Task<'a>> {
        let task = self.created(spec, |_| ())?;
        task.start().context("Start")?;
        Ok(task)
    }

    /// A task that was created and not started, of a container of another id.
    pub fn created_as(&self, id: &str, spec: Spec<'a>) -> Result<Task<'a>> {
        let direct = Direct::new(self.containerd, self.runtime(), id)?;
        Task::create(self.containerd, self.kind, direct, spec, |_| ())
    }

    /// A task that was created and not started, with the request changed at will.
    pub fn created(&self, spec: Spec<'a>, change: impl FnOnce(&mut CreateTaskRequest)) -> Result<Task<'a>> {
        Task::create(self.containerd, self.kind, self.direct()?, spec, change)
    }

    pub fn ctr<const N: usize>(&self, arguments: [&str; N]) -> super::containerd::Ctr {
        self.containerd.ctr(arguments)
    }

    /// Sends a signal (a name such as `TERM`) to the container's init.
    pub fn kill(&self, id: &str, signal: &str) -> Result<()> {
        self.ctr(["tasks", "kill", "--signal", signal, id]).done().map(drop)
    }

    /// The pid of the container's init.
    pub fn pid(&self, id: &str) -> Result<u32> {
        self.containerd.pid(id)
    }

    /// The status `ctr tasks list` shows, such as `RUNNING`.
    pub fn status(&self, id: &str) -> Result<String> {
        self.containerd.listed(id, 2)
    }

    /// Deletes a stopped task and its container.
    pub fn delete(&self, id: &str) -> Result<()> {
        self.ctr(["tasks", "delete", id]).done()?;
        self.ctr(["containers", "delete", id]).done().map(drop)
    }

    /// Kills what bears the test's id and did not end by itself: the shims of bundles made by hand.
    fn kill_everything(&self) -> Result<()> {
        leaks::thaw(&self.id)?;
        leaks::Process::all()?
            .iter()
            .filter(|process| process.mentions(&self.id))
            .try_for_each(|process| process.kill())
    }

    /// After a failure: so that one fault does not show as many. What cannot be removed was reported by the failure.
    fn remove_everything(&self) {
        let Ok(list) = self.ctr(["containers", "list", "-q"]).output() else { return };
        for id in list.stdout.lines().filter(|id| id.starts_with(&self.id)) {
            for command in [["tasks", "delete", "--force", id], ["containers", "delete", id, ""]] {
                let mut ctr = self.ctr([]);
                for argument in command.iter().filter(|argument| !argument.is_empty()) {
                    ctr = ctr.arg(argument);
                }
                let _ = ctr.output();
            }
        }
        if let Err(error) = self.kill_everything() {
            eprintln!("{}: cleaning up after a failure: {error:#}", self.id);
        }
    }
}

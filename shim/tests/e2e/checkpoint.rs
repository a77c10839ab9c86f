//! Checkpoint and restore, by criu.
use crate::harness::command::output;
use crate::harness::direct::{Direct, refused};
use crate::harness::fifos::Fifos;
use crate::harness::leaks::Process;
use crate::harness::spec::Spec;
use crate::harness::task::Task;
use crate::harness::{Case, Kind, Test};
use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{CheckpointTaskRequest, Empty, Status};
use containerd_shim_protos::shim::oci::CheckpointOptions;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;
use ttrpc::Code;

pub const CASES: &[Case] = &[
    Case::new("goes_on_counting_elsewhere", |test| {
        let counter = Counter::start(test, test.spec(&["count"])?)?;
        let images = counter.end_in_checkpoint()?;
        let mut restored = Counter::restore(test, "restored", &images, Ok)?;
        restored.counts(3)?;
        let output = restored.task.exec("one", &["hello"])?.run()?.exits(0)?;
        ensure!(!output.stdout.is_empty(), "{output}");
        restored.task.stats().context("Stats")?;
        restored.end()
    })
    .hybrid_only(), // runc is not given criu's path
    Case::new("leaves_it_running", |test| {
        let mut counter = Counter::start(test, test.spec(&["count"])?)?;
        let images = counter.images.clone();
        dump(&counter.task, &images, |_| ())?;
        let events = &test.containerd.events;
        let event = events.wait_for(&test.id, "/tasks/checkpointed")?;
        ensure!(event.fields["checkpoint"] == *images, "{event:?}");
        counter.counts(3)?;
        // Paused it stays so.
        counter.task.pause().context("Pause")?;
        dump(&counter.task, &images, |_| ())?;
        ensure!(counter.task.state().context("State")?.status() == Status::PAUSED, "no longer paused");
        counter.task.resume().context("Resume")?;
        counter.counts(4)?;
        counter.end()
    })
    .hybrid_only(),
    Case::new("mounts_and_namespaces", |test| {
        let folder = test.containerd.fresh_path("data");
        fs::create_dir_all(folder.join("below")).context("making a folder")?;
        fs::write(folder.join("below/file"), "first").context("writing a file")?;
        let images = Counter::start(test, with_mounts(&folder, test.spec(&["count"])?)?)?.end_in_checkpoint()?;
        let mut restored = Counter::restore(test, "restored", &images, |spec| with_mounts(&folder, spec))?;
        restored.counts(3)?;
        let output = restored.task.exec("one", &["ls", "/data"])?.run()?.exits(0)?;
        ensure!(output.stdout.contains("below"), "{output}");
        restored.end()
    })
    .hybrid_only(),
    Case::new("terminal", |test| {
        let images = Counter::start(test, on_terminal(test.spec(&["count"])?)?)?.end_in_checkpoint()?;
        let mut restored = Counter::restore(test, "restored", &images, on_terminal)?;
        restored.counts(3)?;
        restored.task.resize(100, 40).context("ResizePty")?;
        restored.end()
    })
    .hybrid_only(),
    Case::new("created_from_a_checkpoint", |test| {
        let images = Counter::start(test, test.spec(&["count"])?)?.end_in_checkpoint()?;
        // Not started, it can be deleted, and nothing else.
        let created = Counter::create(test, "created", &images, Ok)?;
        ensure!(created.task.state().context("State")?.status() == Status::CREATED, "not created");
        let task = &created.task;
        refused(task.kill(9), Code::FAILED_PRECONDITION).context("Kill")?;
        refused(task.stats(), Code::FAILED_PRECONDITION).context("Stats")?;
        refused(task.pause(), Code::FAILED_PRECONDITION).context("Pause")?;
        refused(task.update(json!({"pids": {"limit": 9}})), Code::FAILED_PRECONDITION).context("Update")?;
        refused(checkpoint(task, &images, |_| ()), Code::FAILED_PRECONDITION).context("Checkpoint")?;
        created.task.pids().context("Pids")?;
        created.task.delete().context("Delete")?;
        created.task.remove()?;
        // Its files are damaged: it ends, and says why.
        let failing = Counter::create(test, "failing", &images, Ok)?;
        fs::write(format!("{images}/pstree.img"), "nonsense").context("damaging the checkpoint")?;
        let words = refused(failing.task.start(), Code::INTERNAL)?;
        ensure!(words.contains("criu failed"), "{words}");
        ensure!(failing.task.state().context("State")?.status() == Status::STOPPED, "not stopped");
        refused(failing.task.start(), Code::FAILED_PRECONDITION)?;
        failing.task.wait().context("Wait")?;
        failing.task.delete().context("Delete")?;
        failing.task.remove()
    })
    .hybrid_only(),
    Case::new("settings_of_a_file", |test| {
        let settings = test.containerd.fresh_path("criu.conf");
        let annotations = json!({"org.criu.config": settings});
        fs::write(&settings, "log-file named.log\n").context("writing the settings")?;
        let counter = Counter::start(test, test.spec(&["count"])?.set("/annotations", annotations.clone())?)?;
        let (images, work) = (counter.images.clone(), test.containerd.fresh_path("work"));
        dump(&counter.task, &images, |options| options.work_path = work.display().to_string())?;
        ensure!(work.join("named.log").exists(), "the settings were not read");
        counter.end()?;
        Counter::restore(test, "restored", &images, |spec| spec.set("/annotations", annotations.clone()))?.end()?;
        fs::write(&settings, "no-such-setting\n").context("writing the settings")?;
        let failing = Counter::create(test, "failing", &images, |spec| spec.set("/annotations", annotations))?;
        refused(failing.task.start(), Code::INTERNAL)?;
        failing.task.delete().context("Delete")?;
        failing.task.remove()
    })
    .hybrid_only(),
    Case::new("a_failed_dump_changes_nothing", |test| {
        let mut counter = Counter::start(test, test.spec(&["count"])?)?;
        let images = counter.images.clone();
        fs::create_dir(&images).context("making a folder")?;
        // Too small for it.
        command("mount", &["-t", "tmpfs", "-o", "size=8k", "tmpfs", &images])?;
        let words = refused(checkpoint(&counter.task, &images, |options| options.exit = true), Code::INTERNAL)?;
        ensure!(words.contains("criu failed") && words.contains("criu-dump.log"), "{words}");
        command("umount", &[&images])?;
        counter.counts(3)?;
        ensure!(!counter.task.bundle().join("criu-work").exists(), "a folder of criu's is left");
        counter.end()
    })
    .hybrid_only(),
    Case::new("a_wasm_container_has_none", |test| {
        let task = test.task(&["pause"])?;
        let images = test.containerd.fresh_path("checkpoint").display().to_string();
        let words = refused(checkpoint(&task, &images, |_| ()), Code::UNIMPLEMENTED)?;
        ensure!(words.contains("WebAssembly"), "{words}");
        task.end()
    })
    .kinds(Kind::WASM)
    .hybrid_only(),
    Case::new("by_ctr", |test| {
        test.run(&["pause"]).flags(&["--null-io"]).detach()?;
        let printed = test.ctr(["tasks", "checkpoint", "--exit", &test.id]).done()?.stdout;
        let name = printed.trim().to_owned();
        ensure!(!name.is_empty(), "no checkpoint's name");
        if test.containerd.line != "2.x" {
            // The older ctr leaves --exit away for other runtimes than runc's.
            test.kill(&test.id, "KILL")?;
        }
        test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
        test.delete(&test.id)?;
        test.ctr(["images", "delete", &name]).done().map(drop)
    })
    .hybrid_only(),
    Case::new("restored_by_ctr", |test| {
        test.run(&["pause"]).flags(&["--null-io"]).detach()?;
        let name = format!("localhost/hybrid/{}:checkpoint", test.id);
        test.ctr(["containers", "checkpoint", "--rw", "--image", "--task", &test.id, &name]).done()?;
        ensure!(test.status(&test.id)? == "RUNNING", "{}", test.status(&test.id)?);
        test.kill(&test.id, "KILL")?;
        test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
        test.delete(&test.id)?;
        let id = test.other("restored");
        test.ctr(["containers", "restore", "--rw", "--live", &id, &name]).done()?;
        ensure!(test.status(&id)? == "RUNNING", "{}", test.status(&id)?);
        test.ctr(["tasks", "exec", "--exec-id", "one", &id, "/bin/probe", "hello"]).done()?;
        test.kill(&id, "KILL")?;
        test.containerd.events.wait_for(&id, "/tasks/exit")?;
        test.delete(&id)?;
        test.ctr(["images", "delete", &name]).done().map(drop)
    })
    .hybrid_only(),
];

/// A task that answers lines with their number.
struct Counter<'a> {
    task: Task<'a>,
    fifos: Fifos,
    /// Where its checkpoint goes.
    images: String,
}

impl<'a> Counter<'a> {
    /// One that has counted two lines.
    fn start(test: &Test<'a>, spec: Spec<'a>) -> Result<Counter<'a>> {
        let fifos = Fifos::new(test.containerd)?;
        let terminal = spec.value["process"]["terminal"] == true;
        let task = test.created(spec, |request| {
            request.terminal = terminal;
            fifos.name(request);
        })?;
        task.start().context("Start")?;
        let mut counter =
            Counter { task, fifos, images: test.containerd.fresh_path("checkpoint").display().to_string() };
        counter.counts(1)?;
        counter.counts(2)?;
        Ok(counter)
    }

    /// A task in a shim of its own, from a checkpoint.
    fn restore(
        test: &Test<'a>,
        name: &str,
        images: &str,
        change: impl FnOnce(Spec<'a>) -> Result<Spec<'a>>,
    ) -> Result<Counter<'a>> {
        let counter = Counter::create(test, name, images, change)?;
        let pid = counter.task.start().context("Start")?.pid;
        ensure!(pid != 0 && Process::of(pid).is_some(), "no process {pid}");
        Ok(counter)
    }

    /// The same before its start.
    fn create(
        test: &Test<'a>,
        name: &str,
        images: &str,
        change: impl FnOnce(Spec<'a>) -> Result<Spec<'a>>,
    ) -> Result<Counter<'a>> {
        let fifos = Fifos::new(test.containerd)?;
        let id = test.other(name);
        let spec = change(Spec::default(test.containerd, test.kind, &id, &["count"])?)?;
        let terminal = spec.value["process"]["terminal"] == true;
        let direct = Direct::new(test.containerd, test.runtime(), &id)?;
        let task = Task::create(test.containerd, test.kind, direct, spec, |request| {
            request.terminal = terminal;
            fifos.name(request);
            request.checkpoint = images.to_owned();
        })?;
        ensure!(task.pid == 0, "a pid before there is a process: {}", task.pid);
        Ok(Counter { task, fifos, images: images.to_owned() })
    }

    fn counts(&mut self, number: u32) -> Result<()> {
        self.fifos.write(b"\n")?;
        self.fifos.stdout.wait_for(&number.to_string())
    }

    /// Ends with its state in a folder, which is returned.
    fn end_in_checkpoint(self) -> Result<String> {
        let images = self.images.clone();
        dump(&self.task, &images, |options| options.exit = true)?;
        let exit = self.task.wait().context("Wait")?.exit_status;
        ensure!(exit == 137, "ended with {exit}");
        self.task.delete().context("Delete")?;
        self.task.remove()?;
        Ok(images)
    }

    fn end(self) -> Result<()> {
        self.task.end()
    }
}

fn on_terminal(spec: Spec<'_>) -> Result<Spec<'_>> {
    spec.set("/process/terminal", json!(true))
}

/// A bind with a file system of the container's own in it, and namespaces of others.
fn with_mounts<'a>(folder: &Path, spec: Spec<'a>) -> Result<Spec<'a>> {
    let bind = json!({"destination": "/data", "type": "bind", "source": folder, "options": ["rbind", "ro"]});
    let scratch = json!({"destination": "/data/below", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]});
    let namespaces = json!([
        {"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "cgroup"},
        {"type": "network", "path": "/proc/self/ns/net"}, {"type": "ipc", "path": "/proc/self/ns/ipc"}
    ]);
    spec.mount(bind)?.mount(scratch)?.set("/linux/namespaces", namespaces)
}

fn command(program: &str, arguments: &[&str]) -> Result<()> {
    output(Command::new(program).args(arguments), b"")?.exits(0).map(drop)
}

fn dump(task: &Task, images: &str, change: impl FnOnce(&mut CheckpointOptions)) -> Result<()> {
    checkpoint(task, images, change).map(drop).context("Checkpoint")
}

fn checkpoint(task: &Task, images: &str, change: impl FnOnce(&mut CheckpointOptions)) -> ttrpc::Result<Empty> {
    let mut options = CheckpointOptions::default();
    change(&mut options);
    let mut any = Any::new();
    any.type_url = "containerd.runc.v1.CheckpointOptions".to_owned();
    any.value = options.write_to_bytes().unwrap_or_default();
    let options = MessageField::some(any);
    task.call(
        "Checkpoint",
        &CheckpointTaskRequest { id: task.id.clone(), path: images.to_owned(), options, ..Default::default() },
    )
}

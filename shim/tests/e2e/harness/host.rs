//! What is the host's in tests that try to reach it from a container, and root file systems that lead there.
use super::Containerd;
use anyhow::{Context, Result, anyhow, ensure};
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A folder of the host's with a file in it that nothing in a container may come to. Removed with the test.
pub struct Canary {
    folder: PathBuf,
    before: Vec<String>,
}

const TEXT: &str = "untouched\n";

impl Canary {
    pub fn new(containerd: &Containerd) -> Result<Canary> {
        let folder = containerd.fresh_path("canary");
        fs::create_dir_all(folder.join("folder")).with_context(|| format!("making {}", folder.display()))?;
        fs::write(folder.join("file"), TEXT).context("writing the canary")?;
        Canary::at(folder)
    }

    /// The one that the image `hostile` leads to. Tests that run beside each other share it.
    pub fn of_the_hostile_image() -> Result<Canary> {
        static MADE: OnceLock<std::io::Result<()>> = OnceLock::new();
        let folder = Path::new(test_images::CANARY);
        let made = MADE.get_or_init(|| {
            fs::create_dir_all(folder.join("folder"))?;
            fs::write(folder.join("file"), TEXT)
        });
        made.as_ref().map_err(|error| anyhow!("making {}: {error}", folder.display()))?;
        Canary::at(folder.to_owned())
    }

    fn at(folder: PathBuf) -> Result<Canary> {
        let before = state(&folder)?;
        Ok(Canary { folder, before })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn file(&self) -> PathBuf {
        self.folder.join("file")
    }

    /// Fails when anything is not as it was: in the folder, mounted on it, or of the kernel's own state.
    pub fn unharmed(&self) -> Result<()> {
        let now = state(&self.folder)?;
        ensure!(now == self.before, "something outside has changed:\n{:#?}\nwas\n{:#?}", now, self.before);
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading mountinfo")?;
        let name = self.folder.display().to_string();
        let found: Vec<&str> = mounts.lines().filter(|line| line.contains(&name)).collect();
        ensure!(found.is_empty(), "mounted outside: {found:?}");
        Ok(())
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        if self.folder != Path::new(test_images::CANARY) {
            // In the memory of the run, which ends with it.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Every file's name, kind, mode, owner and content, and what of the kernel's a container could change for all.
fn state(folder: &Path) -> Result<Vec<String>> {
    let mut state = Vec::new();
    for name in ["", "file", "folder"] {
        let path = folder.join(name);
        let meta = fs::symlink_metadata(&path).with_context(|| format!("looking at {}", path.display()))?;
        state.push(format!("{name}: {:o} {}:{} {}", meta.mode(), meta.uid(), meta.gid(), meta.rdev()));
    }
    for path in [folder.to_owned(), folder.join("folder")] {
        let mut names: Vec<_> = fs::read_dir(&path).context("listing the canary")?.flatten().collect();
        names.sort_by_key(|entry| entry.file_name());
        state.extend(names.iter().map(|entry| entry.path().display().to_string()));
    }
    for file in [
        folder.join("file"),
        "/proc/sys/kernel/core_pattern".into(),
        "/proc/sys/kernel/hostname".into(),
        "/proc/sys/net/ipv4/ip_unprivileged_port_start".into(),
        "/proc/1/oom_score_adj".into(),
    ] {
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        state.push(format!("{}: {text}", file.display()));
    }
    Ok(state)
}

/// A folder of the host's; removed with the test.
pub struct Volume(PathBuf);

impl Volume {
    pub fn new(containerd: &Containerd) -> Result<Volume> {
        // Not below a path with the container's id, which is what the search for leaks looks for.
        let path = containerd.fresh_path("volume");
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Volume(path))
    }

    /// A copy of an image's root file system.
    pub fn rootfs(containerd: &Containerd, image: &str) -> Result<Volume> {
        let path = containerd.fresh_path("rootfs-copy");
        let mut copy = Command::new("cp");
        let status = copy.arg("-a").arg(containerd.rootfs(image)).arg(&path).status().context("running cp")?;
        ensure!(status.success(), "cp: {status}");
        Ok(Volume(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Puts a symbolic link in place of what is there; folders on the way are made.
    pub fn link(&self, at: &str, target: impl AsRef<Path>) -> Result<()> {
        let path = self.cleared(at)?;
        symlink(target, &path).with_context(|| format!("linking {}", path.display()))
    }

    /// Puts a file in place of what is there; folders on the way are made.
    pub fn file(&self, at: &str, text: &str) -> Result<()> {
        let path = self.cleared(at)?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// The mount of it at `target`, as `ctr run --mount` takes it.
    pub fn mount(&self, target: &str, options: &str) -> String {
        format!("type=bind,src={},dst={target},options={options}", self.0.display())
    }

    /// Makes all in it, and itself, somebody's.
    pub fn give(&self, uid: u32, gid: u32) -> Result<()> {
        let mut all = vec![self.0.clone()];
        while let Some(path) = all.pop() {
            lchown(&path, Some(uid), Some(gid)).with_context(|| format!("chown {}", path.display()))?;
            if path.is_dir() && !path.is_symlink() {
                for entry in fs::read_dir(&path).with_context(|| format!("listing {}", path.display()))? {
                    all.push(entry?.path());
                }
            }
        }
        Ok(())
    }

    pub fn folder(&self, at: &str) -> Result<()> {
        let path = self.0.join(at);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))
    }

    fn cleared(&self, at: &str) -> Result<PathBuf> {
        let path = self.0.join(at);
        let parent = path.parent().context("a path has a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path).context("removing a folder")?,
            Ok(_) => fs::remove_file(&path).context("removing a file")?,
            Err(_) => {}
        }
        Ok(path)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

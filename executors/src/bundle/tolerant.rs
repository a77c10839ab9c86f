//! What users of runc may write and oci-spec can't read: such a spec is put into its words and read again. Others pay nothing.

use std::collections::BTreeSet;

use oci_spec::runtime::Capability;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::from_json;
use crate::error::Result;

/// Flags of `process.scheduler` that oci-spec calls by other names than the spec.
const FLAGS: [(&str, &str); 2] =
    [("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"), ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN")];

/// Parses `part` of a spec, as [`from_json`] does, which has an object `process` at a JSON pointer.
pub(crate) fn read_with_process<T: DeserializeOwned>(text: &[u8], part: &str, pointer: &str) -> Result<T> {
    let error = match from_json(text, part) {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error,
    };
    let Ok(mut json) = serde_json::from_slice::<Value>(text) else { return Err(error) };
    let Some(process) = json.pointer_mut(pointer) else { return Err(error) };
    let before = process.clone();
    translate(process);
    if *process == before {
        return Err(error);
    }
    from_json(json.to_string().as_bytes(), part)
}

fn translate(process: &mut Value) {
    let unknown = process.get_mut("capabilities").map(drop_unknown).unwrap_or_default();
    if !unknown.is_empty() {
        log::warn!("process.capabilities: unknown ones are left out: {unknown:?}");
    }
    for flag in process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some((_, ours)) = FLAGS.iter().find(|(name, _)| flag == name) {
            *flag = (*ours).into();
        }
    }
    for list in ["initial", "final"] {
        let Some(affinity) = process.get_mut("execCPUAffinity").and_then(Value::as_object_mut) else { continue };
        let Some(text) = affinity.get(list).and_then(Value::as_str) else { continue };
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let tidy = parts.collect::<Vec<_>>().join(",");
        if !tidy.is_empty() {
            affinity.insert(list.to_owned(), tidy.into());
        } else if text.is_empty() {
            // The same as none.
            affinity.remove(list);
        }
    }
}

/// Takes the names that are of no capability out of the five sets, and returns them.
fn drop_unknown(sets: &mut Value) -> BTreeSet<String> {
    let mut unknown = BTreeSet::new();
    for set in sets.as_object_mut().into_iter().flat_map(|sets| sets.values_mut()) {
        let Some(set) = set.as_array_mut() else { continue };
        set.retain(|name| {
            let Some(text) = name.as_str() else { return true };
            let known = serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !known {
                unknown.insert(text.to_owned());
            }
            known
        });
    }
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxSchedulerFlag, Process};
    use serde_json::json;

    fn read(change: impl FnOnce(&mut Value)) -> Result<Process> {
        let mut process = json!({"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
        change(&mut process);
        read_with_process(process.to_string().as_bytes(), "process", "")
    }

    #[test]
    fn unknown_capabilities_are_left_out() {
        let process =
            read(|p| p["capabilities"] = json!({"bounding": ["CAP_CHOWN", "CAP_NEWER"], "ambient": ["CAP_X"]}));
        let sets = process.unwrap().capabilities().clone().unwrap();
        assert_eq!(sets.bounding().clone().unwrap().into_iter().collect::<Vec<_>>(), [Capability::Chown]);
        assert!(sets.ambient().clone().unwrap().is_empty());
        let error = read(|p| p["capabilities"] = json!({"bounding": ["CAP_NEWER", 1]})).unwrap_err();
        assert!(error.to_string().starts_with("process.capabilities.bounding"), "{error}");
    }

    #[test]
    fn the_specs_names_of_flags_are_understood() {
        let flags = json!(["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_KEEP_POLICY"]);
        let process = read(|p| p["scheduler"] = json!({"policy": "SCHED_OTHER", "flags": flags})).unwrap();
        assert_eq!(
            process.scheduler().as_ref().unwrap().flags().as_deref(),
            Some(
                &[
                    LinuxSchedulerFlag::SchedResetOnFork,
                    LinuxSchedulerFlag::SchedFlagDLOverrun,
                    LinuxSchedulerFlag::SchedFlagKeepPolicy
                ][..]
            )
        );
        let error = read(|p| p["scheduler"] = json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_X"]})).unwrap_err();
        assert!(error.to_string().starts_with("process.scheduler.flags"), "{error}");
    }

    #[test]
    fn lists_of_cpus_may_have_spaces_and_be_empty() {
        let process = read(|p| p["execCPUAffinity"] = json!({"initial": " 0-1 ,,3", "final": ""})).unwrap();
        let affinity = process.exec_cpu_affinity().clone().unwrap();
        assert_eq!((affinity.initial().as_deref(), affinity.cpu_affinity_final().as_deref()), (Some("0-1,3"), None));
        assert!(read(|p| p["execCPUAffinity"] = json!({"initial": ","})).is_err());
    }
}

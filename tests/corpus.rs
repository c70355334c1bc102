//! Replays the fuzzers' corpus: every input in `tests/fuzz/corpus/` through the very function that its fuzzer runs. Inputs get
//! there because they once reached new code, or broke something; neither may break anything now.

#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// So that a clone stays small and a replay short.
const MOST_INPUTS: usize = 200;
const MOST_BYTES: u64 = 1 << 20;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let dir = corpus().join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut inputs: Vec<_> = entries.map(|entry| entry.expect("can be listed").path()).collect();
    inputs.sort();
    inputs
}

/// One target's whole corpus; tells every input that fails.
fn replay(target: &str) {
    let mut failed = Vec::new();
    for input in inputs(target) {
        let bytes = fs::read(&input).expect("can be read");
        if catch_unwind(|| targets::run(target, &bytes)).is_err() {
            failed.push(input);
        }
    }
    assert!(failed.is_empty(), "{} inputs fail: {failed:#?}", failed.len());
}

macro_rules! replays {
    ($($target:ident)*) => {
        $(#[test]
        fn $target() {
            replay(stringify!($target));
        })*

        const REPLAYED: &[&str] = &[$(stringify!($target)),*];
    };
}

replays! {
    call config control discovery discovery_client discovery_server ip kind merge message_control node noise portmap_http
    portmap_pcp portmap_soap portmap_ssdp probe rendezvous rendezvous_server split stun
}

#[test]
fn every_target_has_a_fuzzer_and_a_corpus_and_is_replayed() {
    let names: Vec<_> = targets::ALL.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, REPLAYED);
    for name in names {
        assert!(inputs(name).len() > 1, "{name} has no corpus");
        let fuzzer = corpus().with_file_name("fuzz_targets").join(name).with_extension("rs");
        let fuzzer = fs::read_to_string(fuzzer).expect("has a fuzzer");
        assert!(fuzzer.contains(&format!("run(\"{name}\", data)")), "{name}'s fuzzer runs another target");
    }
}

#[test]
fn the_corpus_stays_small() {
    let mut bytes = 0;
    for (name, _) in targets::ALL {
        let inputs = inputs(name);
        assert!(inputs.len() <= MOST_INPUTS, "{name} has {} inputs", inputs.len());
        bytes += inputs.iter().map(|input| fs::metadata(input).expect("is there").len()).sum::<u64>();
    }
    assert!(bytes <= MOST_BYTES, "{bytes} bytes");
}

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| p2ptund_fuzz::run("merge", data));

//! What this machine's processor can do. It is asked here, and not in the core, so that a simulated member may have another.

/// Whether it has AES and carry-less multiplication: without the two, AES-256-GCM is slower than ChaCha20-Poly1305, and no
/// longer takes the same time whatever the key. Answered from a cache after the first time.
pub fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_kernel_says_the_same() {
        let text = std::fs::read_to_string("/proc/cpuinfo").expect("is there on Linux");
        let flags = text.lines().find(|line| line.starts_with("flags")).expect("x86 has flags");
        let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
        assert_eq!(super::has_aes(), has("aes") && has("pclmulqdq"));
    }
}

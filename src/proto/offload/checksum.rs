//! The Internet checksum (RFC 1071): the one's complement of the one's complement sum of 16-bit words.
//!
//! Sums are kept unfolded in a `u32`: it holds 65,536 words, more than any packet has, and those of pieces that begin at even
//! bytes add up in any order.
//!
//! The loop is plain code in a shape that the compiler turns into vector instructions. It sums 32-bit words `w` twice: whole,
//! modulo 2³², and their high halves. What is missing of the low halves' sum follows from the two:
//! Σ low = Σ w − 2¹⁶ · Σ high, and all of it fits for up to 2¹⁶ words a lane. That is three instructions for each vector, where
//! adding with a carry or widening every half takes four or more.

/// Lanes that are summed side by side: four vectors of 16 bytes, so that no addition waits for the one before.
const LANES: usize = 16;
const CHUNK: usize = LANES * 4;
/// Summed at once: so much fills no lane, and no packet is longer.
const BLOCK: usize = 1 << 16;

/// The sum of `bytes` as big-endian words; where their count is odd, as though a zero followed.
#[inline]
pub fn sum(bytes: &[u8]) -> u32 {
    if bytes.len() < CHUNK { u32::from(swapped(sum_short(bytes))) } else { sum_long(bytes) }
}

/// Copies `from` to `to`, which is as long, and gives its [`sum`]. In two passes: the second is over the nearest cache, and
/// the library's copy is so much faster than any loop that one pass for both took longer.
pub fn copy(from: &[u8], to: &mut [u8]) -> u32 {
    to.copy_from_slice(from);
    sum(to)
}

/// The 16-bit sum.
pub fn fold(sum: u32) -> u16 {
    let once = (sum >> 16) + (sum & 0xffff);
    (once + (once >> 16)) as u16
}

/// What goes into a header's checksum field.
pub fn finish(sum: u32) -> u16 {
    !fold(sum)
}

/// What goes into a UDP header's: zero would mean that there is none (RFC 768).
pub fn finish_udp(sum: u32) -> u16 {
    match finish(sum) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// The pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1): both `addresses`, of either family, as they stand in the IP
/// header; the protocol, and the transport header's and payload's length.
pub fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> u32 {
    sum(addresses) + u32::from(protocol) + len as u32
}

fn sum_long(bytes: &[u8]) -> u32 {
    bytes.chunks(BLOCK).map(|block| u32::from(swapped(sum_block(block)))).sum()
}

/// Of at most [`BLOCK`] bytes, as words of 32 bits in the machine's own order.
fn sum_block(block: &[u8]) -> u64 {
    let (chunks, rest) = block.as_chunks::<CHUNK>();
    let (mut whole, mut high) = ([0u32; LANES], [0u32; LANES]);
    for chunk in chunks {
        let (words, _) = chunk.as_chunks::<4>();
        for (lane, word) in words.iter().enumerate() {
            let word = u32::from_ne_bytes(*word);
            whole[lane] = whole[lane].wrapping_add(word);
            high[lane] = high[lane].wrapping_add(word >> 16);
        }
    }
    let mut total = sum_short(rest);
    for (whole, high) in whole.into_iter().zip(high) {
        total += u64::from(whole.wrapping_sub(high << 16)) + u64::from(high);
    }
    total
}

/// As [`sum_block`], without lanes: headers. Where the length is a constant, so is the way through it.
#[inline]
fn sum_short(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total = u64::from(match *rest {
        [a] => u32::from_ne_bytes([a, 0, 0, 0]),
        [a, b] => u32::from_ne_bytes([a, b, 0, 0]),
        [a, b, c] => u32::from_ne_bytes([a, b, c, 0]),
        _ => 0,
    });
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    total
}

/// The words were read in the machine's own order; a sum of swapped words is the swapped sum (RFC 1071 section 2).
#[inline]
fn swapped(total: u64) -> u16 {
    let mut folded = (total >> 32) + (total & 0xffff_ffff);
    for _ in 0..3 {
        folded = (folded >> 16) + (folded & 0xffff);
    }
    (folded as u16).to_be()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 4.1, word by word.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        while sum >> 16 != 0 {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    }

    #[test]
    fn agrees_with_the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)), 0xddf2);
        assert_eq!(finish(sum(&bytes)), 0x220d);
    }

    #[test]
    fn the_greatest_words_fill_no_lane() {
        for len in [0, 1, 63, 64, 65, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7] {
            let bytes = vec![0xff; len];
            assert_eq!(fold(sum(&bytes)), slow(&bytes), "{len}");
        }
    }

    #[test]
    fn a_udp_checksum_is_never_zero() {
        assert_eq!(finish(0xffff), 0);
        assert_eq!(finish_udp(0xffff), 0xffff);
        assert_eq!(finish_udp(0x1234), finish(0x1234));
    }

    proptest! {
        #[test]
        fn every_length_sums_as_it_does_word_by_word(bytes in prop::collection::vec(any::<u8>(), 0..3000), at in 0usize..8) {
            let bytes = bytes.get(at..).unwrap_or_default();
            prop_assert_eq!(fold(sum(bytes)), slow(bytes));
            let mut copied = vec![0; bytes.len()];
            prop_assert_eq!(copy(bytes, &mut copied), sum(bytes));
            prop_assert_eq!(copied, bytes);
        }
    }
}

//! What a TUN device hands over, cut into packets: a virtio-net header, then a packet.

use p2ptund::proto::ip;
use p2ptund::proto::offload::checksum::{fold, pseudo_header, sum};
use p2ptund::proto::offload::split::Split;
use p2ptund::proto::offload::virtio::{HEADER_LEN, Header};

pub fn run(data: &[u8]) {
    let Ok(header) = Header::parse(data) else { return };
    assert_eq!(Header::parse(&header.to_bytes()), Ok(header), "what is written reads back");
    let packet = &data[HEADER_LEN..];
    let Ok(split) = Split::new(&header, packet) else { return };
    let whole = *split.header();
    assert_eq!(ip::Header::parse(packet), Some(whole));
    assert_eq!(split.is_whole(), split.segments() == 1);
    assert_eq!(split.write(split.segments(), &mut vec![0; whole.len]), 0);
    if split.is_whole() {
        let mut out = vec![0; whole.len];
        assert_eq!(split.write(0, &mut out), whole.len);
        let touched =
            header.partial.map_or(whole.len, |partial| usize::from(partial.start) + usize::from(partial.offset));
        for (at, (ours, theirs)) in out.iter().zip(packet).enumerate() {
            assert!(ours == theirs || at == touched || at == touched + 1, "nothing but the checksum is written");
        }
        return;
    }

    let size = usize::from(header.segments.expect("or nothing would be cut").size);
    let front = split.segment_len(0) - size;
    let mut payload = Vec::new();
    let mut out = vec![0; front + size];
    for index in 0..split.segments() {
        let len = split.write(index, &mut out);
        assert_eq!(len, split.segment_len(index), "there is room for each where there is for the first");
        assert!(len > front && (len == front + size || index + 1 == split.segments()));
        let segment = &out[..len];
        payload.extend_from_slice(&segment[front..]);
        let header_of = ip::Header::parse(segment).expect("each segment is an IP packet");
        assert_eq!(header_of, ip::Header { len, ..whole });
        if segment[0] >> 4 == 4 {
            let at = usize::from(segment[0] & 0x0f) * 4;
            assert_eq!(fold(sum(&segment[..at])), 0xffff);
            // Where the sum was half done, it is as right as the half.
            if header.partial.is_none() {
                let pseudo = pseudo_header(&segment[12..20], segment[9], len - at);
                assert_eq!(fold(pseudo + sum(&segment[at..])), 0xffff);
            }
        }
    }
    assert_eq!(payload, packet[front..whole.len], "nothing is lost, nothing twice");
}

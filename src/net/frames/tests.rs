use super::*;
use crate::net::budget::ReceiveBudget;
use crate::net::conn::Conn;
use crate::net::deadline::tests::pair;
use crate::net::lines::tests::Chunks;
use crate::net::source;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::sync::atomic::Ordering::SeqCst;

fn over(chunks: &[&[u8]], max_bytes: usize) -> FrameReader<Chunks> {
    FrameReader::new(Chunks::of(chunks), LineLimits::new(max_bytes))
}

fn client_of(budget: &Arc<ReceiveBudget>) -> Reservation {
    Reservation::for_client(Arc::clone(budget), source::key_of([127, 0, 0, 1].into()))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

#[test]
fn frames_come_one_by_one_however_they_were_cut() {
    let long = vec![7; 40_000];
    let mut bytes = Vec::new();
    for message in [&b"{}"[..], b"", &long, b"x"] {
        bytes.extend(encode_frame(message).unwrap());
    }
    for keeps in [false, true] {
        for size in [1, 3, 1000, 100_000] {
            let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
            let mut reader = over(&chunks, 40_000);
            if keeps {
                reader.retain_buffer();
            }
            for expected in [&b"{}"[..], b"", &long, b"x"] {
                assert_eq!(reader.read_frame().unwrap().unwrap(), expected);
            }
            assert!(reader.read_frame().unwrap().is_none());
            assert_eq!(reader.buffer.capacity() == 0, !keeps, "only a link keeps a buffer");
        }
    }
}

#[test]
fn a_length_past_the_limit_costs_no_memory() {
    for length in [11_u32, 2 << 20, u32::MAX] {
        let mut reader = over(&[&length.to_be_bytes(), b"0123456789"], 10);
        assert_eq!(reader.read_frame().unwrap_err().to_string(), "the message is longer than 10 bytes");
        assert!(reader.buffer.capacity() <= FIRST_READ_BYTES);
    }
    // Nor does one within it, before the bytes are there.
    let budget = ReceiveBudget::new(100 << 10);
    let mut reader = over(&[&(1_u32 << 20).to_be_bytes(), &[1; 1020]], 1 << 20);
    reader.reservation = client_of(&budget);
    assert!(matches!(reader.read_frame(), Err(LineError::Truncated)));
    assert!(budget.used_bytes() <= 20 << 10, "{} bytes were taken for 1024", budget.used_bytes());
}

#[test]
fn garbage_and_broken_ends_have_their_errors() {
    assert!(matches!(over(&[b"\0\0"], 10).read_frame(), Err(LineError::Truncated)));
    assert!(matches!(over(&[b"\0\0\0\x02x"], 10).read_frame(), Err(LineError::Truncated)));
    assert!(matches!(over(&[], 10).read_frame(), Ok(None)));
}

#[test]
fn past_the_budget_it_is_busy_and_what_was_handled_counts_no_more() {
    let budget = ReceiveBudget::new(150_000);
    let bytes = encode_frame(&[b' '; 100_000]).unwrap();
    let line = [&[b' '; 100_000][..], b"\n"].concat();
    let begin = |bytes: &[u8]| {
        let reservation = client_of(&budget);
        MessageReader::detect_framing(Chunks::of(&[bytes]), LineLimits::new(1 << 20), reservation).unwrap().unwrap()
    };
    let mut frames = begin(&[&bytes[..], &bytes].concat());
    assert_eq!(frames.read_before(soon()).unwrap().unwrap().len(), 100_000);
    assert!(matches!(begin(&bytes).read_before(soon()), Err(LineError::Busy)));
    assert!(matches!(begin(&line).read_before(soon()), Err(LineError::Busy)));
    assert_eq!(frames.read_before(soon()).unwrap().unwrap().len(), 100_000, "its own first one was given back");
    assert!(frames.read_before(soon()).unwrap().is_none());
    assert_eq!(begin(&line).read_before(soon()).unwrap().unwrap().len(), 100_000);
    drop(frames);
    assert_eq!(budget.used_bytes(), 0);
}

#[test]
fn the_first_byte_tells_the_framing() {
    let begin = |bytes: &[u8]| {
        MessageReader::detect_framing(Chunks::of(&[bytes]), LineLimits::new(100), Reservation::default()).unwrap()
    };
    let mut lines = begin(b"\r\n {}\n{\xff\n[]\n").unwrap();
    assert_eq!(lines.framing(), Framing::Lines);
    assert_eq!(lines.read_before(soon()).unwrap().unwrap(), b"");
    assert_eq!(lines.read_before(soon()).unwrap().unwrap(), b" {}");
    assert_eq!(lines.read_before(soon()).unwrap().unwrap(), b"{\xff", "whether it is text, whoever reads it says");
    assert_eq!(lines.read_before(soon()).unwrap().unwrap(), b"[]");
    let mut frames = begin(b"\0\0\0\x02{}\0\0\0\x01\n").unwrap();
    assert_eq!(frames.framing(), Framing::Frames);
    assert_eq!(frames.read_before(soon()).unwrap().unwrap(), b"{}");
    assert_eq!(frames.read_before(soon()).unwrap().unwrap(), b"\n");
    for other in [&b""[..], b"GET / HTTP/1.1\r\n", b"\xff\xff\xff\xff", b"\x16\x03\x01"] {
        assert!(begin(other).is_none(), "{other:?}");
    }
}

#[test]
fn a_last_line_needs_no_end_and_a_byte_order_mark_begins_one() {
    for last in [&b"{}"[..], b"\xef\xbb\xbf{}", b" ", b"{}\r"] {
        let source = Chunks::of(&[b"{}\n", last]);
        let lines =
            MessageReader::detect_framing(source, LineLimits::new(100), Reservation::default()).unwrap().unwrap();
        let mut lines = lines.accepting_unterminated_line(Arc::default());
        assert_eq!(lines.read_before(soon()).unwrap().unwrap(), b"{}");
        let expected = last.strip_suffix(b"\r").unwrap_or(last);
        assert_eq!(lines.read_before(soon()).unwrap().unwrap(), expected);
        assert!(lines.read_before(soon()).unwrap().is_none());
    }
    let marked =
        MessageReader::detect_framing(Chunks::of(&[b"\xef"]), LineLimits::new(9), Reservation::default()).unwrap();
    assert_eq!(marked.unwrap().framing(), Framing::Lines);
    // Too long is too long at the end, too.
    let four = || MessageReader::lines(Chunks::of(&[b"{234"]), LineLimits::new(3), Reservation::default());
    let too_long = four().accepting_unterminated_line(Arc::default()).read_before(soon());
    assert!(matches!(too_long, Err(LineError::TooLong { max_bytes: 3 })));
    // When we end the input ourselves, it is unknown what was still to come.
    let we_end_it = Arc::new(AtomicBool::new(false));
    let source = Chunks::of(&[b"{}\n", b"{}"]);
    let mut lines = MessageReader::lines(source, LineLimits::new(9), Reservation::default())
        .accepting_unterminated_line(Arc::clone(&we_end_it));
    assert_eq!(lines.read_before(soon()).unwrap().unwrap(), b"{}");
    we_end_it.store(true, SeqCst);
    assert!(matches!(lines.read_before(soon()), Err(LineError::Truncated)));
    // A client that waits for a response must see that it was cut short.
    assert!(matches!(four().read_before(soon()), Err(LineError::Truncated)));
}

#[test]
fn what_is_short_is_taken_whatever_others_have_of_the_budget() {
    let budget = ReceiveBudget::new(100 << 10);
    let mut all = Reservation::for_link(Arc::clone(&budget));
    assert!(all.grow_to(100 << 10));
    let begin = |message: &[u8]| {
        let (limits, reservation) = (LineLimits::new(1 << 20), client_of(&budget));
        MessageReader::detect_framing(Chunks::of(&[message]), limits, reservation).unwrap().unwrap().read_before(soon())
    };
    for length in [10, 1_100, 4_000] {
        let line = [&vec![b' '; length][..], b"\n"].concat();
        assert_eq!(begin(&line).unwrap().unwrap().len(), length);
        assert_eq!(begin(&encode_frame(&vec![b' '; length]).unwrap()).unwrap().unwrap().len(), length);
    }
    assert!(matches!(begin(&encode_frame(&[b' '; 5_000]).unwrap()), Err(LineError::Busy)));
    assert!(matches!(begin(&[b' '; 5_000]), Err(LineError::Busy)));
}

#[test]
fn a_trickling_frame_times_out_absolutely() {
    let (mut client, server) = pair();
    let limits = LineLimits { message_timeout: Duration::from_millis(200), ..LineLimits::new(1000) };
    let (source, writer) = Conn::plain(server).split();
    let mut reader = FrameReader::new(source, limits);
    client.write_all(b"\0\0\0\xff").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Until the other end is closed.
            while client.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let error = reader.read_frame().unwrap_err();
        assert_eq!(error.to_string(), "the message was not complete 0.2 s after its first byte");
        writer.close();
        drop((reader, writer));
    });
}

#[test]
fn the_last_word_is_heard_by_one_who_still_writes() {
    let (mut client, server) = pair();
    let (source, writer) = Conn::plain(server).split();
    let sending = std::thread::spawn(move || {
        client.write_all(&(8_u32 << 20).to_be_bytes()).unwrap();
        client.write_all(&vec![b'x'; 8 << 20]).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).map(|_| answer)
    });
    let mut reader =
        MessageReader::detect_framing(source, LineLimits::new(1 << 20), Reservation::default()).unwrap().unwrap();
    assert!(matches!(reader.read_before(soon()), Err(LineError::TooLong { .. })));
    Framing::Frames.write(&writer, b"too long").unwrap();
    reader.linger(&writer);
    assert_eq!(sending.join().unwrap().unwrap(), encode_frame(b"too long").unwrap());
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_never_panic(
        bytes in proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'\n'), 0_u8..4, any::<u8>()], 0..300),
        cut in 1_usize..40,
        keeps in any::<bool>(),
    ) {
        let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
        let mut reader = over(&chunks, 100);
        reader.retains_buffer = keeps;
        // The same by hand.
        let mut rest = &bytes[..];
        loop {
            let expected = rest.split_first_chunk::<4>().and_then(|(length, after)| {
                let length = u32::from_be_bytes(*length) as usize;
                (length <= 100).then(|| after.split_at_checked(length)).flatten()
            });
            match (reader.read_frame(), expected) {
                (Ok(Some(got)), Some((frame, after))) => {
                    prop_assert_eq!(&got[..], frame);
                    rest = after;
                }
                (Ok(None), None) => {
                    prop_assert!(rest.is_empty());
                    break;
                }
                (Err(_), None) => {
                    prop_assert!(!rest.is_empty());
                    break;
                }
                (got, expected) => prop_assert!(false, "{:?} for {:?}", got, expected),
            }
        }
        let limits = LineLimits::new(100);
        if let Ok(Some(mut messages)) = MessageReader::detect_framing(Chunks::of(&chunks), limits, Reservation::default()) {
            while let Ok(Some(_)) = messages.read_before(soon()) {}
        }
    }
}

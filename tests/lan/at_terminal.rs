//! `p2s2 lan` at a terminal.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::peers::{RawPeer, TestEnv};
use crate::support::PATIENCE;
use crate::terminal::{CTRL_D, ENTER, TAB, Terminal};

#[test]
fn what_others_say_tears_no_line_that_is_typed() {
    let env = TestEnv::new();
    let mut alice = Terminal::start(&mut env.command("alice"));
    alice.sees("alice is here, at ");
    alice.sees("alice> ");
    let mut zoe = RawPeer::new(&env, "zoe");
    zoe.announce(&[("FEATURES", "ack")]);
    let addr = zoe.next("PEER_DISCOVERY").from;
    alice.sees("zoe is here");
    alice.sees("alice> ");
    alice.types("lis");
    alice.sees("lis");
    let post = "TYPE:POST\nUSER_ID:zoe@127.0.0.1\nCONTENT:how are you?\n\n";
    zoe.socket.send_to(post.as_bytes(), addr).unwrap();
    // Messages are printed above the input line, which is drawn again.
    alice.sees("zoe: how are you?");
    alice.sees("alice> lis");
    alice.types("t\r");
    alice.sees("LAST SEEN");
    alice.sees(&zoe.port().to_string());
    alice.sees("alice> ");
    // The same at a prompt for missing text, after completing a name.
    alice.types("DM z");
    alice.sees("DM z");
    alice.types(TAB);
    alice.sees("zoe");
    alice.types(ENTER);
    alice.sees("Text: ");
    alice.types("fi");
    zoe.socket.send_to(post.as_bytes(), addr).unwrap();
    alice.sees("zoe: how are you?");
    alice.sees("Text: fi");
    alice.types("ne\r");
    alice.sees("sent to zoe@127.0.0.1");
    let said = zoe.next("DM");
    assert_eq!(said.get("CONTENT"), "fine");
    let ack = format!("TYPE:ACK\nMESSAGE_ID:{}\nSTATUS:RECEIVED\n\n", said.get("MESSAGE_ID"));
    zoe.socket.send_to(ack.as_bytes(), addr).unwrap();
    alice.sees("zoe has your message");
    alice.sees("alice> ");
    alice.types(CTRL_D);
    let (code, all) = alice.ends();
    assert_eq!(code, 0, "{all:?}");
}

#[test]
fn the_prompt_bears_the_name_that_one_has() {
    let env = TestEnv::new();
    let mut alice = Terminal::start(env.command("alice").args(["--announce-every", "100ms"]));
    alice.sees("alice> ");
    // The one with the smaller INSTANCE yields, at once or after a while.
    let rival = RawPeer::new(&env, "alice");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let began_at = Instant::now();
            while !over.load(Relaxed) && began_at.elapsed() < PATIENCE {
                rival.announce(&[]);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        alice.sees("another alice is on this machine: you are alice2 from now on");
        over.store(true, Relaxed);
    });
    // The prompt changes with the next line.
    alice.types("verbose\r");
    alice.sees("verbose is on");
    alice.sees("alice2> ");
    alice.types(CTRL_D);
    assert_eq!(alice.ends().0, 0);
}

#[test]
fn a_name_is_asked_for() {
    let env = TestEnv::new();
    let mut carol = Terminal::start(&mut env.nameless());
    carol.sees("Your name: ");
    carol.types("carol\r");
    carol.sees("carol is here");
    carol.sees("carol> ");
    carol.types("quit\r");
    assert_eq!(carol.ends().0, 0);
}

#[test]
fn lines_that_come_at_once_are_commands_each() {
    let env = TestEnv::new();
    let mut alice = Terminal::start(&mut env.command("alice"));
    alice.sees("alice> ");
    let mut zoe = RawPeer::new(&env, "zoe");
    zoe.announce(&[("FEATURES", "ack")]);
    alice.sees("zoe is here");
    // Typed ahead.
    alice.types("POST one\rPOST two\rPOST three\r");
    for content in ["one", "two", "three"] {
        assert_eq!(zoe.next("POST").get("CONTENT"), content);
        alice.sees("sent to 1 peer");
    }
    alice.sees("alice> ");
    // Pasted lines are separate commands: a DM must not become part of a POST.
    alice.types("\x1b[200~# a remark\rPOST four\rDM zoe between us\rPOST five\x1b[201~\r");
    assert_eq!(zoe.next("POST").get("CONTENT"), "four");
    assert_eq!(zoe.next("DM").get("CONTENT"), "between us");
    assert_eq!(zoe.next("POST").get("CONTENT"), "five");
    // The responses to four and five. Then input is read again; its end while a command runs is tested elsewhere.
    alice.sees("sent to 1 peer");
    alice.sees("sent to 1 peer");
    alice.sees("alice> ");
    alice.types(CTRL_D);
    assert_eq!(alice.ends().0, 0);
}

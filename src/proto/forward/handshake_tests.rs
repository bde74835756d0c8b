//! Both sides against each other, and against bytes made by hand from the protocol.

use super::*;

fn security(users: &[(&str, &str)]) -> Security {
    let user = |(name, password): &(&str, &str)| User { name: (*name).into(), password: (*password).into() };
    Security {
        self_hostname: "agg-a.example.net".into(),
        shared_key: b"s3cr3t".to_vec(),
        users: users.iter().map(user).collect(),
    }
}

fn credentials(key: &str, user: Option<(&str, &str)>) -> Credentials {
    Credentials {
        self_hostname: "client.example.net".into(),
        shared_key: key.into(),
        user: user.map(|(name, password)| User { name: name.into(), password: password.into() }),
    }
}

/// Both sides against each other: what the server and what the client think of it.
fn shake(
    security: &Security,
    credentials: Credentials,
) -> (Result<Peer, HandshakeError>, Result<Peer, HandshakeError>) {
    let server = Server::new(security, [7; 32]);
    let (ping, client) = match Client::new(credentials, [9; 16]).handle_helo(&server.helo()) {
        Ok(both) => both,
        Err(error) => return (Err(HandshakeError::Unexpected("PING")), Err(error)),
    };
    let verdict = server.handle_ping(security, &ping);
    assert!(server_writes_fit(&verdict.reply));
    (verdict.outcome, client.handle_pong(&verdict.reply))
}

fn server_writes_fit(message: &[u8]) -> bool {
    message.len() < 512
}

#[test]
fn a_client_that_knows_the_key_gets_in() {
    let (server, client) = shake(&security(&[]), credentials("s3cr3t", None));
    assert_eq!(server.unwrap(), Peer { hostname: "client.example.net".into(), user: None, keepalive: false });
    assert_eq!(client.unwrap(), Peer { hostname: "agg-a.example.net".into(), user: None, keepalive: true });
}

#[test]
fn a_client_without_the_key_stays_out() {
    let (server, client) = shake(&security(&[]), credentials("other", None));
    assert_eq!(server, Err(HandshakeError::SharedKey("client.example.net".into())));
    assert_eq!(client, Err(HandshakeError::Refused("shared_key mismatch".into())));
}

#[test]
fn users_are_checked_when_there_are_some() {
    let security = security(&[("alice", "a"), ("bob", "b")]);
    let (server, client) = shake(&security, credentials("s3cr3t", Some(("bob", "b"))));
    assert_eq!((server.unwrap().user.as_deref(), client.is_ok()), (Some("bob"), true));
    for (name, password) in [("bob", "a"), ("carol", "a"), ("", "")] {
        let (server, client) = shake(&security, credentials("s3cr3t", Some((name, password))));
        assert_eq!(server, Err(HandshakeError::User { client: "client.example.net".into(), user: name.into() }));
        assert_eq!(client, Err(HandshakeError::Refused("username/password mismatch".into())));
    }
    let (_, client) = shake(&security, credentials("s3cr3t", None));
    assert_eq!(client, Err(HandshakeError::UserWanted));
}

#[test]
fn helo_and_pong_have_the_bytes_that_clients_expect() {
    let helo = Server::new(&security(&[]), [7; 32]).helo();
    let expected = [&b"\x92\xa4HELO\x83\xa5nonce\xc4\x10"[..], &[7; 16], b"\xa4auth\xa0\xa9keepalive\xc3"].concat();
    assert_eq!(helo, expected);
    let helo = Server::new(&security(&[("alice", "a")]), [7; 32]).helo();
    assert!(helo.windows(7).any(|part| part == b"\xa4auth\xc4\x10"));
    assert_eq!(
        refuse_source("192.0.2.1".parse().unwrap()),
        b"\x95\xa4PONG\xc2\xd9\x28anonymous source host '192.0.2.1' denied\xa0\xa0"
    );
}

#[test]
fn a_salt_may_be_raw_bytes_in_a_str() {
    let security = security(&[]);
    let server = Server::new(&security, [7; 32]);
    let salt = [0xff, 0, 0x80, 0x7f, 0xff, 0, 0x80, 0x7f, 0xff, 0, 0x80, 0x7f, 0xff, 0, 0x80, 0x7f];
    let proof = hex(&digest(&[&salt, b"n1", &[7; 16], b"s3cr3t"]));
    let garbage = "0".repeat(128);
    let ping =
        [b"\x96\xa4PING\xa2n1\xb0", &salt[..], b"\xd9\x80", proof.as_bytes(), b"\xa0\xd9\x80", garbage.as_bytes()];
    let verdict = server.handle_ping(&security, &ping.concat());
    assert_eq!(verdict.outcome.unwrap().hostname, "n1");
    let d3 = hex(&digest(&[&salt, b"agg-a.example.net", &[7; 16], b"s3cr3t"]));
    let pong = [b"\x95\xa4PONG\xc3\xa0\xb1agg-a.example.net\xd9\x80", d3.as_bytes()].concat();
    assert_eq!(verdict.reply, pong);
}

#[test]
fn anything_but_a_ping_is_refused() {
    let security = security(&[]);
    let event = b"\x93\xa1t\x01\x80";
    let short = b"\x95\xa4PING\xa1a\xa1a\xa1a\xa1a";
    let long = b"\x97\xa4PING\xa1a\xa1a\xa1a\xa1a\xa1a\xa1a";
    let other = b"\x96\xa4PONG\xa1a\xa1a\xa1a\xa1a\xa1a";
    for message in [&event[..], short, long, other, b"\xc0", b"", b"\x96\xa4PING\x01\x01\x01\x01\x01"] {
        let verdict = Server::new(&security, [7; 32]).handle_ping(&security, message);
        assert_eq!(verdict.outcome, Err(HandshakeError::Unexpected("PING")), "{message:02x?}");
        assert_eq!(verdict.reply, b"\x95\xa4PONG\xc2\xb4invalid ping message\xa0\xa0");
    }
}

#[test]
fn a_server_without_the_key_gets_nothing() {
    let client = || Client::new(credentials("s3cr3t", None), [9; 16]);
    let helo = b"\x92\xa4HELO\x81\xa5nonce\xb0\xff123456789abcdef";
    let (_, awaiting) = client().handle_helo(helo).unwrap();
    let pong = [&b"\x95\xa4PONG\xc3\xa0\xa1s\xd9\x80"[..], &[b'0'; 128]].concat();
    assert_eq!(awaiting.handle_pong(&pong), Err(HandshakeError::Server("s".into())));
    for message in [&b"\xc0"[..], b"\x91\xa4HELO", b"\x92\xa4PING\x80", b"\x92\xa4HELO\x01"] {
        assert_eq!(client().handle_helo(message).err(), Some(HandshakeError::Unexpected("HELO")));
    }
    for message in [&b"\xc0"[..], b"\x94\xa4PONG\xc3\xa0\xa1s", b"\x95\xa4PONG\x01\xa0\xa1s\xa0"] {
        let (_, awaiting) = client().handle_helo(helo).unwrap();
        assert_eq!(awaiting.handle_pong(message), Err(HandshakeError::Unexpected("PONG")));
    }
}

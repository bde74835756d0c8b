use super::*;
use crate::proto::batch::BatchBuilder;
use crate::proto::envelope::{Flags, Origin, Timestamp, Transport};
use crate::proto::position::Incarnation;
use bytes::BytesMut;

/// A node's disks: the batches of each journal it has, and which it writes.
struct Disks {
    name: NodeName,
    own: JournalId,
    journals: BTreeMap<JournalId, Vec<Batch>>,
    replicated: Mark,
}

fn id(node: &str, incarnation: u64) -> JournalId {
    JournalId { node: node.parse().unwrap(), incarnation: Incarnation(incarnation) }
}

fn end(batches: &[Batch]) -> Mark {
    batches.last().map_or(Mark::default(), Batch::end)
}

impl Disks {
    fn new(node: &str) -> Disks {
        let own = id(node, 1);
        let journals = [(own.clone(), Vec::new())].into();
        Disks { name: node.parse().unwrap(), own, journals, replicated: Mark::default() }
    }

    fn append(&mut self, random: &mut fastrand::Rng) {
        let mut builder = BatchBuilder::new();
        let input =
            Origin { received_at: Timestamp(1), source: None, transport: Transport::Udp, input: "in", tag: b"" };
        builder.set_origin(&input);
        for _ in 0..random.usize(1..4) {
            builder.push(Flags::NONE, &vec![b'x'; random.usize(1..200)]);
        }
        let stamp = Stamp::from(&self.own);
        let batches = self.journals.get_mut(&self.own).unwrap();
        batches.push(builder.seal(stamp, end(batches)));
    }

    fn hello(&self) -> Hello {
        let held = |(journal, batches): (&JournalId, &Vec<Batch>)| Held {
            journal: journal.clone(),
            is_own: *journal == self.own,
            oldest: batches.first().map_or(Mark::default(), Batch::start),
            durable: end(batches),
            delivered: BTreeMap::new(),
        };
        let journals = self.journals.iter().map(held).collect();
        Hello { protocol: PROTOCOL, program: "test".to_owned(), node: self.name.clone(), configuration: 0, journals }
    }

    /// Everything at or after `at`, a few batches at a time.
    fn after(&self, journal: &JournalId, at: Mark) -> Vec<Batch> {
        let batches = &self.journals[journal];
        batches.iter().filter(|batch| batch.start() >= at).take(3).cloned().collect()
    }
}

/// Two nodes and what is on its way between them.
struct World {
    now: Instant,
    nodes: [Disks; 2],
    sessions: Option<[Session; 2]>,
    wires: [BytesMut; 2],
}

impl World {
    fn new() -> World {
        let nodes = [Disks::new("agg-a"), Disks::new("agg-b")];
        World { now: Instant::now(), nodes, sessions: None, wires: Default::default() }
    }

    fn connect(&mut self) {
        let [a, b] = &self.nodes;
        let sessions = [(a, b), (b, a)].map(|(own, peer)| Session::new(own.hello(), peer.name.clone(), self.now));
        self.sessions = Some(sessions);
        self.wires = Default::default();
    }

    /// Node `at` does what it can: ships, sends, hears up to `most` bytes.
    fn step(&mut self, at: usize, most: usize) -> Result<(), SessionError> {
        let Some(sessions) = &mut self.sessions else { return Ok(()) };
        let (session, node) = (&mut sessions[at], &mut self.nodes[at]);
        let shipments: Vec<_> = session.shipments().map(|(journal, at)| (journal.clone(), at)).collect();
        for (journal, sent) in shipments {
            if session.has_room(&journal) {
                session.ship(self.now, &journal, &node.after(&journal, sent));
            }
        }
        while let Some(bytes) = session.poll_transmit() {
            self.wires[at].extend_from_slice(&bytes);
        }
        let wire = &mut self.wires[1 - at];
        let mut heard = wire.split_to(most.min(wire.len()));
        // A real reader keeps what is half there; here it is put back.
        while let Some(frame) = Frame::take(&mut heard)? {
            session.handle_frame(self.now, frame)?;
        }
        heard.extend_from_slice(wire);
        *wire = heard;
        while let Some(effect) = session.poll_effect() {
            match effect {
                Effect::Begin { journal, at } => {
                    let batches = node.journals.entry(journal).or_default();
                    assert!(end(batches) <= at, "shipping begins where the mirror ends, or behind it");
                }
                Effect::SkipTo { journal, to } => assert!(end(&node.journals[&journal]) < to),
                Effect::Take { journal, batches } => {
                    let mirror = node.journals.get_mut(&journal).unwrap();
                    assert!(batches.first().unwrap().start() >= end(mirror), "nothing comes twice");
                    mirror.extend(batches);
                    let durable = end(mirror);
                    session.set_durable(self.now, &journal, durable);
                }
                Effect::Replicated { journal, mark } if journal == node.own => {
                    node.replicated = mark;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn settle(&mut self) {
        for _ in 0..400 {
            for at in [0, 1] {
                self.step(at, usize::MAX).unwrap();
            }
        }
    }

    fn assert_mirrored(&self) {
        let [a, b] = &self.nodes;
        for journal in a.journals.keys().chain(b.journals.keys()) {
            // An orphan without a message is nowhere else.
            let [there, here] = [a, b].map(|node| node.journals.get(journal).map_or(&[][..], Vec::as_slice));
            let tail = there.len().min(here.len());
            assert_eq!(there[there.len() - tail..], here[here.len() - tail..], "{journal}");
            assert!(tail > 0 || there.is_empty() && here.is_empty(), "{journal}");
        }
    }
}

#[test]
fn journals_are_mirrored_through_breaks_trims_and_wiped_disks() {
    for seed in 0..300 {
        let random = &mut fastrand::Rng::with_seed(seed);
        let mut world = World::new();
        for _ in 0..200 {
            let at = random.usize(0..2);
            match random.u32(0..100) {
                0..40 => world.nodes[at].append(random),
                40..44 => world.connect(),
                44..47 => world.sessions = None,
                47..49 => {
                    // What both have may have been delivered: it is trimmed on one side, any time.
                    let own = world.nodes[at].own.clone();
                    let replicated = world.nodes[at].replicated;
                    let batches = world.nodes[at].journals.get_mut(&own).unwrap();
                    let trimmed = batches.iter().take_while(|batch| batch.end() <= replicated).count();
                    batches.drain(..trimmed.saturating_sub(1));
                }
                49 => {
                    // A disk is lost, with the process that used it.
                    world.sessions = None;
                    let incarnation = world.nodes[at].own.incarnation.0 + 1;
                    let node = &mut world.nodes[at];
                    node.journals.clear();
                    node.own = id(node.name.as_str(), incarnation);
                    node.journals.insert(node.own.clone(), Vec::new());
                    node.replicated = Mark::default();
                }
                _ => {
                    let most = random.usize(1..4000);
                    world.step(at, most).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                }
            }
        }
        world.connect();
        world.settle();
        world.assert_mirrored();
    }
}

fn met() -> (World, Session) {
    let mut world = World::new();
    let random = &mut fastrand::Rng::with_seed(1);
    (0..5).for_each(|_| world.nodes[1].append(random));
    let mut session = Session::new(world.nodes[0].hello(), world.nodes[1].name.clone(), world.now);
    session.handle_frame(world.now, Frame::Control(Message::Hello(world.nodes[1].hello()))).unwrap();
    (world, session)
}

#[test]
fn a_peer_that_lies_is_refused() {
    let (world, session) = met();
    let stream = 0;
    let far = Mark { position: Position(1 << 40), ordinal: 9 };
    let try_frame = |frame: Frame| {
        let mut session = Session::new(world.nodes[0].hello(), world.nodes[1].name.clone(), world.now);
        session.handle_frame(world.now, Frame::Control(Message::Hello(world.nodes[1].hello()))).unwrap();
        session.handle_frame(world.now, frame)
    };
    let beyond = try_frame(Frame::Control(Message::Durable { stream, mark: far }));
    assert_eq!(beyond, Err(SessionError::Position(world.nodes[0].own.clone())), "durable beyond what was sent");
    let back = try_frame(Frame::Control(Message::Skip { stream, to: Mark::default() }));
    assert_eq!(back, Err(SessionError::Position(world.nodes[1].own.clone())), "a skip to what was already there");
    let unknown = try_frame(Frame::Batches { stream: 7, bytes: Bytes::from_static(b"x") });
    assert!(matches!(unknown, Err(SessionError::OutOfTurn(_))), "{unknown:?}");
    let again = try_frame(Frame::Control(Message::Hello(world.nodes[1].hello())));
    assert!(matches!(again, Err(SessionError::OutOfTurn(_))), "{again:?}");
    let batches = &world.nodes[1].journals[&world.nodes[1].own];
    let later = try_frame(Frame::Batches { stream, bytes: batches[1].bytes().clone() });
    assert!(matches!(later, Err(SessionError::Batch { cause: BatchError::Foreign, .. })), "a hole: {later:?}");
    let mut flipped = batches[0].bytes().to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    let flipped = try_frame(Frame::Batches { stream, bytes: flipped.into() });
    assert!(matches!(flipped, Err(SessionError::Batch { cause: BatchError::Checksum, .. })), "{flipped:?}");
    drop(session);
}

#[test]
fn a_stranger_and_another_protocol_are_refused_with_a_sentence() {
    let world = World::new();
    let meet = |hello: Hello| {
        let mut session = Session::new(world.nodes[0].hello(), world.nodes[1].name.clone(), world.now);
        session.handle_frame(world.now, Frame::Control(Message::Hello(hello)))
    };
    assert_eq!(meet(world.nodes[0].hello()), Err(SessionError::Stranger(world.nodes[0].name.clone())), "itself");
    let newer = Hello { protocol: PROTOCOL + 1, program: "9.9".to_owned(), ..world.nodes[1].hello() };
    let refused = meet(newer).unwrap_err().to_string();
    assert!(refused.contains("twinlog 9.9") && refused.contains("the same version on both"), "{refused}");
    let mut session = Session::new(world.nodes[0].hello(), world.nodes[1].name.clone(), world.now);
    let early = session.handle_frame(world.now, Frame::Control(Message::Status(Status::default())));
    assert!(matches!(early, Err(SessionError::OutOfTurn(_))), "{early:?}");
}

#[test]
fn silence_ends_it_and_a_heartbeat_keeps_it() {
    let (world, mut session) = met();
    while session.poll_transmit().is_some() {}
    assert!(session.poll_effect().is_some());
    let soon = world.now + HEARTBEAT;
    assert_eq!(session.poll_timeout(), soon);
    session.handle_timeout(soon).unwrap();
    assert!(session.poll_transmit().is_some(), "a sign of life");
    assert_eq!(session.handle_timeout(world.now + SILENCE_MAX), Err(SessionError::Silent));
}

fn said(session: &mut Session) -> Vec<Message> {
    let mut bytes = BytesMut::new();
    while let Some(some) = session.poll_transmit() {
        bytes.extend_from_slice(&some);
    }
    let frames = std::iter::from_fn(|| Frame::take(&mut bytes).unwrap());
    frames.filter_map(|frame| if let Frame::Control(message) = frame { Some(message) } else { None }).collect()
}

#[test]
fn what_is_shown_is_said_when_it_is_news_and_a_sign_of_life_without_it() {
    let (world, mut session) = met();
    let status = |shown: &str| Status { is_active: true, shown: Some(shown.to_owned()), ..Status::default() };
    let bare = Message::Status(Status { shown: None, ..status("") });
    let _ = said(&mut session);
    session.set_status(world.now, status("one"));
    assert_eq!(said(&mut session), [Message::Status(status("one"))]);
    session.handle_timeout(world.now + HEARTBEAT).unwrap();
    assert_eq!(said(&mut session), std::slice::from_ref(&bare));
    session.set_status(world.now, status("two"));
    assert_eq!(said(&mut session), [Message::Status(status("two"))]);
    session.handle_timeout(world.now + 2 * HEARTBEAT).unwrap();
    assert_eq!(said(&mut session), [bare]);
}

#[test]
fn what_the_other_node_said_of_deliveries_is_not_told_back() {
    let (world, mut session) = met();
    let journal = world.nodes[0].own.clone();
    let outputs = |position| BTreeMap::from([("siem".to_owned(), Mark { position: Position(position), ordinal: 1 })]);
    session.set_delivered(world.now, &journal, outputs(10));
    let _ = said(&mut session);
    let heard = Message::Delivered { journal: journal.clone(), outputs: outputs(20) };
    session.handle_frame(world.now, Frame::Control(heard)).unwrap();
    session.set_delivered(world.now, &journal, outputs(20));
    assert_eq!(said(&mut session), []);
    session.set_delivered(world.now, &journal, outputs(30));
    assert_eq!(said(&mut session), [Message::Delivered { journal, outputs: outputs(30) }]);
}

#[test]
fn a_peer_that_claims_to_write_our_journal_is_refused() {
    let world = World::new();
    let mut session = Session::new(world.nodes[0].hello(), world.nodes[1].name.clone(), world.now);
    let ours = Hello { journals: world.nodes[0].hello().journals, ..world.nodes[1].hello() };
    let refused = session.handle_frame(world.now, Frame::Control(Message::Hello(ours)));
    assert!(matches!(refused, Err(SessionError::OutOfTurn(_))), "{refused:?}");
}

#[test]
fn a_writer_that_went_back_in_time_is_not_mirrored() {
    let mut world = World::new();
    let random = &mut fastrand::Rng::with_seed(1);
    (0..5).for_each(|_| world.nodes[0].append(random));
    world.connect();
    world.settle();
    let own = world.nodes[0].own.clone();
    let kept: Vec<Batch> = world.nodes[0].journals[&own][..2].to_vec();
    let (mirror, writer) = (end(&world.nodes[0].journals[&own]), end(&kept));
    world.nodes[0].journals.insert(own.clone(), kept);
    let mut session = Session::new(world.nodes[0].hello(), world.nodes[1].name.clone(), world.now);
    session.handle_frame(world.now, Frame::Control(Message::Hello(world.nodes[1].hello()))).unwrap();
    assert!(session.shipments().next().is_none());
    let effects: Vec<Effect> = std::iter::from_fn(|| session.poll_effect()).collect();
    assert!(effects.contains(&Effect::RolledBack { journal: own.clone(), mirror, writer }), "{effects:?}");

    // What either has delivered of its copy may be other messages of the other's.
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Delivered { journal, .. } if *journal == own)));
    let _ = said(&mut session);
    session.set_delivered(world.now, &own, BTreeMap::new());
    assert_eq!(said(&mut session), []);
    let heard = Message::Delivered { journal: own, outputs: BTreeMap::new() };
    session.handle_frame(world.now, Frame::Control(heard)).unwrap();
    assert_eq!(session.poll_effect(), None);
}

#[test]
fn what_came_over_an_earlier_connection_is_declared_as_far_as_it_comes_over_this_one() {
    let (world, mut session) = met();
    while session.poll_transmit().is_some() {}
    let journal = &world.nodes[1].own;
    let batches = &world.nodes[1].journals[journal];
    session.set_durable(world.now, journal, batches[1].end());
    assert_eq!(session.poll_transmit(), None, "the other node has not sent that yet, on this connection");
    for (at, declared) in [(0, 0), (1, 1), (2, 1)] {
        let bytes = batches[at].bytes().clone();
        session.handle_frame(world.now, Frame::Batches { stream: 0, bytes }).unwrap();
        let mark = batches[declared].end();
        let expected = (at == declared).then(|| control(&Message::Durable { stream: 0, mark }));
        assert_eq!(session.poll_transmit(), expected, "batch {at}");
    }
}

//! One contract for everything that implements `world::Kernel`, run on the simulated kernel and on the real one, each case in a
//! network namespace of its own. What only the real one can show is in `netlink.rs`.

#[path = "support/netns.rs"]
mod netns;
#[path = "support/world.rs"]
mod world;

use egressguard::ruleset::program::{Comparison, Element, Expr, GenerationId, Hook, Key, KeyType, Op, Register, SetDef, TableDef, Verdict};
use egressguard::simulated::Simulated;
use egressguard::world::{Depth, KernelError};
use world::*;

/// Each law once for each world.
macro_rules! contract {
    ($($law:ident)*) => {
        mod simulated {
            $(#[test] fn $law() { super::$law(&mut super::World::Simulated(super::Simulated::new())); })*
        }
        mod real {
            $(#[test] fn $law() { super::netns::in_fresh_netns(|| super::$law(&mut super::real_kernel())); })*
        }
    };
}

contract! {
    what_is_committed_is_observed
    every_expression_comes_back_as_it_was
    every_shape_of_set_comes_back_as_it_was
    an_empty_transaction_is_not_sent
    steps_that_change_nothing_make_no_generation
    a_stale_generation_changes_nothing
    a_table_that_is_there_may_be_added_again
    a_refused_last_step_leaves_nothing_of_the_others
    a_refusal_names_each_step_that_failed
    what_is_missing_is_enoent
    what_is_in_use_is_ebusy
    what_is_there_is_eexist
    a_policy_changes_by_adding_the_chain_again
    flushing_a_chain_keeps_sets_and_their_elements
    the_table_is_replaced_in_one_transaction
    twenty_thousand_elements_are_one_transaction
    five_hundred_rules_overflow_nothing
    intervals_touch_and_reach_the_last_address
    a_whole_set_shows_only_when_asked_for
    an_element_that_is_there_stays_as_it_is
    an_element_goes_when_its_time_is_over
    renewal_works_whether_an_element_is_there_or_gone_or_over
    a_full_set_refuses_more
    an_expression_that_is_not_ours_is_not_written
    a_control_group_is_not_asked_for_where_packets_are_forwarded
    a_jump_that_leads_back_is_refused
    our_own_table_is_not_among_what_surrounds_it
}

fn what_is_committed_is_observed(world: &mut World) {
    let generation = world.kernel().generation().unwrap();
    assert_eq!(world.kernel().observe(Depth::Rules).unwrap(), (generation, None));
    let ops = [
        table(),
        base("input", Hook::Input, false),
        base("output", Hook::Output, true),
        chain("outbound"),
        rule("output", "jump-out", [Expr::Verdict(Verdict::Jump("outbound".into()))]),
        rule("outbound", "", [Expr::Counter]),
    ];
    let made = world.kernel().commit(generation, &ops).unwrap();
    assert_eq!(made, GenerationId(generation.0 + 1));
    assert_eq!(world.kernel().observe(Depth::Everything).unwrap(), (made, Some(expected(&ops))));
}

fn every_expression_comes_back_as_it_was(world: &mut World) {
    let uids = SetDef { dynamic: true, timeout: true, size: Some(100), ..SetDef::plain("uids", [KeyType::Uid]) };
    let ledger = SetDef { counter: true, ..SetDef { name: "ledger".into(), ..uids.clone() } };
    let pairs = SetDef::plain("pairs", [KeyType::Ipv4Addr, KeyType::InetService]);
    let limit = |over| Expr::Limit { rate: 20, unit: 60, burst: 7, kind: 0, over };
    let update = |set: &str, timeout_ms, element| Expr::Update { set: set.into(), operation: 1, from: REGISTER, timeout_ms, element };
    let mut ops = vec![table(), Op::AddSet(uids), Op::AddSet(ledger), Op::AddSet(pairs), base("out", Hook::Output, true), chain("c")];
    let mut load = |name: &str, exprs: Vec<Expr>| ops.push(rule("out", name, exprs));
    let from = REGISTER;
    for key in [3, 4, 5, 6, 7, 10, 11, 15, 16] {
        load("meta", vec![Expr::Meta { key, into: Register(key as u8 % 16) }]);
    }
    for (key, direction) in [(0, None), (1, None), (2, None), (12, Some(0)), (11, Some(1)), (19, Some(0))] {
        load("ct", vec![Expr::Ct { key, direction, into: from }]);
    }
    load("socket", vec![Expr::SocketCgroup { level: 2, into: from }, Expr::Compare { how: Comparison::Equal, from, data: vec![7; 8] }]);
    load("payload", vec![Expr::Payload { base: 2, offset: 2, len: 2, into: Register(5) }, load_daddr()]);
    load("payload16", vec![Expr::Payload { base: 1, offset: 24, len: 16, into: Register(12) }]);
    load("bitwise", vec![load_daddr(), Expr::Bitwise { from, into: from, mask: vec![255, 255, 0, 0], xor: vec![0, 0, 0, 1] }]);
    load("bitwise1", vec![Expr::Meta { key: 16, into: from }, Expr::Bitwise { from, into: from, mask: vec![2], xor: vec![0] }]);
    load(
        "bitwise16",
        vec![
            Expr::Payload { base: 1, offset: 24, len: 16, into: from },
            Expr::Bitwise { from, into: from, mask: vec![1; 16], xor: vec![0; 16] },
        ],
    );
    for how in [
        Comparison::Equal,
        Comparison::NotEqual,
        Comparison::Less,
        Comparison::LessOrEqual,
        Comparison::Greater,
        Comparison::GreaterOrEqual,
    ] {
        for length in [1, 2, 3, 4, 5, 8, 16] {
            load("cmp", vec![Expr::Meta { key: 6, into: from }, Expr::Compare { how, from, data: vec![7; length] }]);
        }
    }
    for inverted in [false, true] {
        let (low, high) = (vec![0, 80], vec![1, 187]);
        load("range", vec![Expr::Payload { base: 2, offset: 2, len: 2, into: from }, Expr::Range { inverted, from, low, high }]);
        load("lookup", vec![Expr::Meta { key: 10, into: from }, Expr::Lookup { set: "uids".into(), from, inverted }]);
        load("limit", vec![limit(inverted)]);
    }
    load("bytes", vec![Expr::Limit { rate: 1000, unit: 1, burst: 9, kind: 1, over: false }]);
    load("pair", vec![load_daddr(), Expr::Payload { base: 2, offset: 2, len: 2, into: Register(1) }, lookup("pairs")]);
    load("update", vec![Expr::Meta { key: 10, into: from }, update("uids", 0, vec![])]);
    load("update timeout", vec![Expr::Meta { key: 10, into: from }, update("uids", 3_600_000, vec![])]);
    load("update limit", vec![Expr::Meta { key: 10, into: from }, update("uids", 0, vec![limit(true)])]);
    load("update two", vec![Expr::Meta { key: 10, into: from }, update("uids", 60_000, vec![Expr::Counter, limit(true)])]);
    load("update counting", vec![Expr::Meta { key: 10, into: from }, update("ledger", 0, vec![])]);
    for operation in [0, 2] {
        let change = Expr::Update { set: "uids".into(), operation, from, timeout_ms: 0, element: vec![] };
        load("add or delete", vec![Expr::Meta { key: 10, into: from }, change]);
    }
    load("counter", vec![Expr::Counter]);
    load("log", vec![Expr::Log { prefix: "egressguard refuse ".into(), group: 65535, snaplen: 128, threshold: 16 }]);
    load("log bare", vec![Expr::Log { prefix: String::new(), group: 0, snaplen: 0, threshold: 0 }]);
    for (kind, code) in [(0, 3), (1, 0), (2, 3)] {
        let guard = [Expr::Meta { key: 15, into: from }, Expr::Compare { how: Comparison::Equal, from, data: vec![2] }];
        let tcp = [Expr::Meta { key: 16, into: from }, Expr::Compare { how: Comparison::Equal, from, data: vec![6] }];
        load("reject", [guard.to_vec(), tcp.to_vec(), vec![Expr::Reject { kind, code }]].concat());
    }
    for verdict in
        [Verdict::Accept, Verdict::Drop, Verdict::Continue, Verdict::Return, Verdict::Jump("c".into()), Verdict::Goto("c".into())]
    {
        load("verdict", vec![Expr::Verdict(verdict)]);
    }
    load(&"x".repeat(253), vec![]);
    round_trip(world, &ops);
}

fn every_shape_of_set_comes_back_as_it_was(world: &mut World) {
    let mut ops = vec![table()];
    let address = [192, 0, 2, 1];
    let v6 = "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let long = "a".repeat(120) + "." + &"b".repeat(120) + ".example";
    let mut put = |set: SetDef, elements: Vec<(Key, Element)>| {
        ops.push(Op::AddSet(set.clone()));
        ops.push(add(&set, elements));
    };
    for (key, value) in [
        (KeyType::Ipv4Addr, address.to_vec()),
        (KeyType::Ipv6Addr, v6.to_vec()),
        (KeyType::InetProto, vec![6]),
        (KeyType::InetService, vec![1, 187]),
        (KeyType::Mark, 7u32.to_ne_bytes().to_vec()),
        (KeyType::Uid, 1000u32.to_ne_bytes().to_vec()),
        (KeyType::Gid, 1000u32.to_ne_bytes().to_vec()),
        (KeyType::IcmpType, vec![8]),
        (KeyType::Icmpv6Type, vec![128]),
        (KeyType::CgroupV2, 4711u64.to_ne_bytes().to_vec()),
    ] {
        put(SetDef::plain(format!("type {}", key.name()), [key]), vec![single(&value)]);
    }
    let pinned =
        |comment: &str| Element { timeout_ms: Some(3_600_000), comment: comment.into(), counted: Some((12, 3456)), ..Element::default() };
    let pins = SetDef { timeout: true, counter: true, ..SetDef::plain("pins", [KeyType::Ipv4Addr]) };
    put(pins.clone(), vec![(address.to_vec(), pinned("api.openai.com")), (vec![192, 0, 2, 2], pinned(&long)), single(&[192, 0, 2, 3])]);
    let pair = [KeyType::Ipv6Addr, KeyType::InetService];
    let pair_key = [&v6[..], &[1, 187, 0, 0]].concat();
    put(SetDef { timeout: true, ..SetDef::plain("pairs", pair) }, vec![(pair_key, Element { counted: None, ..pinned("api.openai.com") })]);
    let who = [KeyType::Uid, KeyType::Ipv4Addr, KeyType::InetProto, KeyType::InetService];
    let ledger = SetDef { dynamic: true, timeout: true, counter: true, size: Some(65_000), ..SetDef::plain("ledger", who) };
    put(ledger, vec![(vec![232, 3, 0, 0, 192, 0, 2, 1, 6, 0, 0, 0, 1, 187, 0, 0], pinned(""))]);
    let nets = SetDef { interval: true, counter: true, ..SetDef::plain("nets", [KeyType::Ipv4Addr]) };
    let (low, high) = span(&[10, 0, 0, 0], &[10, 255, 255, 255]);
    put(
        nets,
        vec![
            (low, Element { comment: "ten".into(), counted: Some((1, 2)), ..high }),
            span(&[0, 0, 0, 0], &[0, 0, 0, 0]),
            span(&address, &address),
        ],
    );
    let nets6 = SetDef { interval: true, timeout: true, ..SetDef::plain("nets6", [KeyType::Ipv6Addr]) };
    put(nets6, vec![(v6.to_vec(), Element { last: Some(vec![255; 16]), timeout_ms: Some(60_000), ..Element::default() })]);
    let ranges = SetDef { interval: true, timeout: true, ..SetDef::plain("ranges", [KeyType::Ipv4Addr, KeyType::InetService]) };
    put(ranges, vec![span(&[192, 0, 2, 0, 31, 64, 0, 0], &[192, 0, 2, 255, 31, 144, 0, 0]), span(&[1; 8], &[1; 8])]);
    put(SetDef::plain("n".repeat(200), [KeyType::Mark]), vec![]);
    round_trip(world, &ops);
    let left = world.elements("pins")[&address.to_vec()].expires_ms.unwrap();
    assert!((3_590_000..=3_600_000).contains(&left), "{left} ms are left of an hour");
}

fn an_empty_transaction_is_not_sent(world: &mut World) {
    let generation = world.kernel().generation().unwrap();
    assert_eq!(world.kernel().commit(generation, &[]).unwrap(), generation);
    assert_eq!(world.kernel().generation().unwrap(), generation);
}

fn steps_that_change_nothing_make_no_generation(world: &mut World) {
    let pins = SetDef::plain("pins", [KeyType::Ipv4Addr]);
    world.put(&[table(), chain("empty"), Op::AddSet(pins.clone()), add(&pins, [single(&[1; 4])])]);
    let generation = world.kernel().generation().unwrap();
    let nothing = [table(), Op::FlushChain("empty".into()), add(&pins, []), delete(&pins, []), add(&pins, [single(&[1; 4])])];
    assert_eq!(world.kernel().commit(generation, &nothing).unwrap(), generation);
    assert_eq!(world.kernel().generation().unwrap(), generation);
}

fn a_stale_generation_changes_nothing(world: &mut World) {
    world.put(&[table()]);
    let stale = world.kernel().generation().unwrap();
    world.put(&[chain("theirs")]);
    for wrong in [stale, GenerationId(0), GenerationId(stale.0 + 7)] {
        let before = world.kernel().observe(Depth::Everything).unwrap();
        assert!(matches!(world.kernel().commit(wrong, &[Op::DeleteTable]), Err(KernelError::Interfered)));
        assert_eq!(world.kernel().observe(Depth::Everything).unwrap(), before);
    }
}

fn a_table_that_is_there_may_be_added_again(world: &mut World) {
    world.put(&[table(), chain("kept")]);
    let before = world.see();
    world.put(&[Op::AddTable(TableDef { comment: "another comment is not taken".into(), flags: 0 })]);
    assert_eq!(world.see(), before);
}

fn a_refused_last_step_leaves_nothing_of_the_others(world: &mut World) {
    let pins = SetDef::plain("pins", [KeyType::Ipv4Addr]);
    let whole = [table(), base("out", Hook::Output, false), Op::AddSet(pins.clone()), add(&pins, [single(&[1; 4])])];
    let refusals = world.refused(&[&whole[..], &[rule("nowhere", "", [])]].concat());
    assert_eq!(refusals, [("add a rule to chain `nowhere`".into(), "ENOENT".into())]);
    assert_eq!(world.see(), None);
}

fn a_refusal_names_each_step_that_failed(world: &mut World) {
    world.put(&[table(), chain("c")]);
    let refusals = world.refused(&[
        rule("c", "openai", [load_daddr(), lookup("missing")]),
        rule("c", "fine", [Expr::Counter]),
        Op::DeleteSet("also-missing".into()),
        rule("nowhere", "residency", []),
    ]);
    let named = [
        ("add rule `openai` to chain `c`", "ENOENT"),
        ("delete set `also-missing`", "ENOENT"),
        ("add rule `residency` to chain `nowhere`", "ENOENT"),
    ];
    assert_eq!(refusals, named.map(|(step, errno)| (step.to_owned(), errno.to_owned())));
}

fn what_is_missing_is_enoent(world: &mut World) {
    let pins = SetDef::plain("pins", [KeyType::Ipv4Addr]);
    for op in [Op::DeleteTable, chain("c"), Op::AddSet(pins.clone()), Op::FlushChain("c".into()), add(&pins, [single(&[1; 4])])] {
        assert_eq!(world.refused(std::slice::from_ref(&op)), [(op.to_string(), "ENOENT".into())]);
    }
    let other = SetDef::plain("other", [KeyType::Uid]);
    world.put(&[table(), chain("c"), Op::AddSet(pins.clone())]);
    for op in [
        Op::DeleteChain("nowhere".into()),
        Op::FlushChain("nowhere".into()),
        Op::DeleteSet("other".into()),
        rule("c", "jump", [Expr::Verdict(Verdict::Jump("nowhere".into()))]),
        rule("c", "goto", [Expr::Verdict(Verdict::Goto("nowhere".into()))]),
        rule("c", "lookup", [lookup("other")]),
        rule("c", "update", [Expr::Update { set: "other".into(), operation: 1, from: REGISTER, timeout_ms: 0, element: vec![] }]),
        add(&other, [single(&[1; 4])]),
        delete(&other, [single(&[1; 4])]),
        delete(&pins, [single(&[1; 4])]),
    ] {
        assert_eq!(world.refused(std::slice::from_ref(&op)), [(op.to_string(), "ENOENT".into())]);
    }
}

fn what_is_in_use_is_ebusy(world: &mut World) {
    let pins = SetDef::plain("pins", [KeyType::Ipv4Addr]);
    let uids = SetDef { dynamic: true, size: Some(9), ..SetDef::plain("uids", [KeyType::Uid]) };
    world.put(&[
        table(),
        chain("target"),
        chain("full"),
        Op::AddSet(pins),
        Op::AddSet(uids),
        rule("full", "", [load_daddr(), lookup("pins"), Expr::Verdict(Verdict::Jump("target".into()))]),
        rule(
            "full",
            "",
            [
                Expr::Meta { key: 10, into: REGISTER },
                Expr::Update { set: "uids".into(), operation: 0, from: REGISTER, timeout_ms: 0, element: vec![] },
            ],
        ),
    ]);
    for op in [Op::DeleteChain("target".into()), Op::DeleteChain("full".into()), Op::DeleteSet("pins".into()), Op::DeleteSet("uids".into())]
    {
        assert_eq!(world.refused(std::slice::from_ref(&op)), [(op.to_string(), "EBUSY".into())]);
    }
    world.put(&[
        Op::FlushChain("full".into()),
        Op::DeleteChain("full".into()),
        Op::DeleteChain("target".into()),
        Op::DeleteSet("pins".into()),
        Op::DeleteSet("uids".into()),
    ]);
    assert_eq!(world.see(), Some(expected(&[table()])));
}

fn what_is_there_is_eexist(world: &mut World) {
    let pins = SetDef::plain("pins", [KeyType::Ipv4Addr]);
    let nets = SetDef { interval: true, ..SetDef::plain("nets", [KeyType::Ipv4Addr]) };
    let net = span(&[10, 0, 0, 0], &[10, 0, 0, 255]);
    world.put(&[table(), base("in", Hook::Input, true), Op::AddSet(pins.clone()), Op::AddSet(nets.clone()), add(&nets, [net])]);
    for op in [
        Op::AddSet(pins.clone()),
        Op::AddSet(SetDef::plain("pins", [KeyType::Ipv6Addr])),
        add(&nets, [span(&[10, 0, 0, 128], &[10, 0, 1, 0])]),
        add(&nets, [span(&[9, 255, 255, 255], &[10, 0, 0, 7])]),
    ] {
        assert_eq!(world.refused(std::slice::from_ref(&op)), [(op.to_string(), "EEXIST".into())]);
    }
    // EOPNOTSUPP from newer kernels.
    assert!(["EEXIST", "EOPNOTSUPP"].contains(&world.refused(&[base("in", Hook::Output, true)])[0].1.as_str()));
    world.put(&[Op::DeleteSet("pins".into()), Op::AddSet(SetDef::plain("pins", [KeyType::Ipv6Addr]))]);
}

fn a_policy_changes_by_adding_the_chain_again(world: &mut World) {
    world.put(&[table(), base("in", Hook::Input, true), rule("in", "kept", [Expr::Counter])]);
    world.put(&[base("in", Hook::Input, false)]);
    assert_eq!(world.see(), Some(expected(&[table(), base("in", Hook::Input, false), rule("in", "kept", [Expr::Counter])])));
}

fn flushing_a_chain_keeps_sets_and_their_elements(world: &mut World) {
    let pins = SetDef { counter: true, timeout: true, ..SetDef::plain("pins", [KeyType::Ipv4Addr]) };
    let pin =
        (vec![1; 4], Element { counted: Some((5, 500)), comment: "api.openai.com".into(), timeout_ms: Some(60_000), ..Element::default() });
    let kept = [table(), base("out", Hook::Output, false), Op::AddSet(pins.clone()), add(&pins, [pin])];
    let old = [rule("out", "old", [load_daddr(), lookup("pins")]), rule("out", "older", [Expr::Counter])];
    let new = [rule("out", "new", [load_daddr(), lookup("pins"), Expr::Verdict(Verdict::Accept)])];
    world.put(&[&kept[..], &old].concat());
    world.put(&[&[Op::FlushChain("out".into())], &new[..]].concat());
    assert_eq!(timeless(world.see().unwrap()), expected(&[&kept[..], &new].concat()));
}

fn the_table_is_replaced_in_one_transaction(world: &mut World) {
    world.put(&[table(), base("out", Hook::Output, false), rule("out", "old", [Expr::Counter])]);
    let generation = world.kernel().generation().unwrap();
    let fresh = [Op::AddTable(TableDef { comment: "fresh".into(), flags: 0 }), base("in", Hook::Input, true)];
    world.put(&[&[table(), Op::DeleteTable][..], &fresh].concat());
    assert_eq!(world.kernel().observe(Depth::Everything).unwrap(), (GenerationId(generation.0 + 1), Some(expected(&fresh))));
}

fn twenty_thousand_elements_are_one_transaction(world: &mut World) {
    let pins = SetDef { timeout: true, counter: true, ..SetDef::plain("pins", [KeyType::Ipv4Addr]) };
    let nets = SetDef { interval: true, ..SetDef::plain("nets", [KeyType::Ipv4Addr]) };
    let address = |number: u32| (0x0a00_0000 + number * 4).to_be_bytes();
    let pin = |number| {
        (address(number).to_vec(), Element { timeout_ms: Some(3_600_000), comment: "api.openai.com".into(), ..Element::default() })
    };
    let net = |number| span(&address(number), &(0x0a00_0001 + number * 4).to_be_bytes());
    let ops =
        [table(), Op::AddSet(pins.clone()), Op::AddSet(nets.clone()), add(&pins, (0..20_000).map(pin)), add(&nets, (0..20_000).map(net))];
    let before = world.kernel().generation().unwrap();
    round_trip(world, &ops);
    assert_eq!(world.kernel().generation().unwrap(), GenerationId(before.0 + 1));
    world.put(&[delete(&pins, (0..20_000).map(pin)), delete(&nets, (0..20_000).map(net))]);
    assert_eq!(world.see(), Some(expected(&ops[..3])));
}

fn five_hundred_rules_overflow_nothing(world: &mut World) {
    let mut ops = vec![table(), base("out", Hook::Output, false)];
    ops.extend((0..500).map(|number| rule("out", &format!("rule-{number}"), [load_daddr(), Expr::Counter])));
    round_trip(world, &ops);
    // And as many refusals: the first are named, and nothing of it is done.
    let wrong: Vec<Op> = (0..500).map(|number| rule("nowhere", &format!("rule-{number}"), [])).collect();
    assert_eq!(world.refused(&wrong)[0], ("add rule `rule-0` to chain `nowhere`".into(), "ENOENT".into()));
}

fn intervals_touch_and_reach_the_last_address(world: &mut World) {
    let nets = SetDef { interval: true, ..SetDef::plain("nets", [KeyType::Ipv4Addr]) };
    let ports = SetDef { interval: true, ..SetDef::plain("ports", [KeyType::InetService]) };
    let intervals = [
        span(&[0, 0, 0, 0], &[0, 0, 0, 255]),
        span(&[0, 0, 1, 0], &[0, 0, 1, 0]),
        span(&[10, 0, 0, 0], &[10, 0, 0, 255]),
        span(&[10, 0, 1, 0], &[10, 0, 1, 255]),
        span(&[240, 0, 0, 0], &[255, 255, 255, 255]),
    ];
    let all = [
        table(),
        Op::AddSet(nets.clone()),
        Op::AddSet(ports.clone()),
        add(&nets, intervals.clone()),
        add(&ports, [span(&[255, 255], &[255, 255])]),
    ];
    round_trip(world, &all);
    world.put(&[delete(&nets, [intervals[2].clone(), intervals[4].clone()]), delete(&ports, [span(&[255, 255], &[255, 255])])]);
    let rest = [intervals[0].clone(), intervals[1].clone(), intervals[3].clone()];
    assert_eq!(world.see(), Some(expected(&[table(), Op::AddSet(nets.clone()), Op::AddSet(ports), add(&nets, rest)])));
}

fn a_whole_set_shows_only_when_asked_for(world: &mut World) {
    let pins = SetDef::plain("pins", [KeyType::Uid]);
    let ledger = SetDef { dynamic: true, size: Some(10), ..SetDef::plain("ledger", [KeyType::Uid]) };
    let element = single(&[1, 0, 0, 0]);
    world.put(&[
        table(),
        Op::AddSet(pins.clone()),
        Op::AddSet(ledger.clone()),
        add(&pins, [element.clone()]),
        add(&ledger, [element.clone()]),
    ]);
    for (depth, sizes) in [(Depth::Rules, [0, 0]), (Depth::Pins, [0, 1]), (Depth::Everything, [1, 1])] {
        let dump = world.kernel().observe(depth).unwrap().1.unwrap();
        assert_eq!(
            dump.sets.into_iter().map(|(name, (_, elements))| (name, elements.len())).collect::<Vec<_>>(),
            [("ledger".to_owned(), sizes[0]), ("pins".to_owned(), sizes[1])]
        );
    }
}

fn an_element_that_is_there_stays_as_it_is(world: &mut World) {
    let pins = SetDef { counter: true, ..SetDef::plain("pins", [KeyType::Ipv4Addr]) };
    let element = |comment: &str, counted| (vec![1; 4], Element { comment: comment.into(), counted, ..Element::default() });
    let ops = [table(), Op::AddSet(pins.clone()), add(&pins, [element("first", Some((3, 30)))])];
    world.put(&ops);
    world.put(&[add(&pins, [element("second", Some((9, 90)))])]);
    assert_eq!(world.see(), Some(expected(&ops)));
}

fn an_element_goes_when_its_time_is_over(world: &mut World) {
    let pins = SetDef { timeout: true, ..SetDef::plain("pins", [KeyType::Ipv4Addr]) };
    let short = (vec![1; 4], Element { timeout_ms: Some(200), ..Element::default() });
    world.put(&[table(), Op::AddSet(pins.clone()), add(&pins, [short.clone(), single(&[2; 4])])]);
    let left = world.elements("pins")[&vec![1; 4]].expires_ms;
    assert!(left.is_some_and(|left| left <= 200), "{left:?}");
    world.wait_ms(300);
    assert_eq!(world.elements("pins").into_keys().collect::<Vec<_>>(), [vec![2; 4]]);
    assert_eq!(world.refused(&[delete(&pins, [short])])[0].1, "ENOENT");
}

fn renewal_works_whether_an_element_is_there_or_gone_or_over(world: &mut World) {
    let pins = SetDef { timeout: true, counter: true, ..SetDef::plain("pins", [KeyType::Ipv4Addr]) };
    let pin = |key: u8, timeout, counted| {
        (vec![key; 4], Element { timeout_ms: Some(timeout), counted, comment: "api.openai.com".into(), ..Element::default() })
    };
    world.put(&[table(), Op::AddSet(pins.clone()), add(&pins, [pin(1, 60_000, Some((1, 10))), pin(2, 100, Some((2, 20)))])]);
    world.wait_ms(200);
    let renewed = [pin(1, 3_600_000, Some((1, 10))), pin(2, 3_600_000, Some((2, 20))), pin(3, 3_600_000, None)];
    world.put(&[add(&pins, renewed.clone()), delete(&pins, renewed.clone()), add(&pins, renewed.clone())]);
    assert_eq!(timeless(world.see().unwrap()), expected(&[table(), Op::AddSet(pins.clone()), add(&pins, renewed)]));
    assert!(world.elements("pins").values().all(|element| element.expires_ms.is_some_and(|left| left > 3_500_000)));
}

fn a_full_set_refuses_more(world: &mut World) {
    let pins = SetDef { size: Some(2), ..SetDef::plain("pins", [KeyType::Ipv4Addr]) };
    world.put(&[table(), Op::AddSet(pins.clone()), add(&pins, [single(&[1; 4]), single(&[2; 4])])]);
    assert_eq!(world.refused(&[add(&pins, [single(&[3; 4])])])[0].1, "ENFILE");
}

fn an_expression_that_is_not_ours_is_not_written(world: &mut World) {
    world.put(&[table(), chain("c")]);
    let refusals = world.refused(&[rule("c", "q", [Expr::Foreign("quota".into())])]);
    assert!(refusals[0].0 == "add rule `q` to chain `c`" && refusals[0].1.starts_with("EOPNOTSUPP"), "{refusals:?}");
}

fn a_control_group_is_not_asked_for_where_packets_are_forwarded(world: &mut World) {
    world.put(&[table(), base("forward", Hook::Forward, true), base("output", Hook::Output, true), chain("c"), chain("outbound")]);
    let jump = |from: &str, to: &str| rule(from, &format!("to {to}"), [Expr::Verdict(Verdict::Jump(to.into()))]);
    let service = rule("outbound", "service", [Expr::SocketCgroup { level: 2, into: REGISTER }]);
    let refusals = world.refused(&[jump("forward", "c"), jump("c", "outbound"), service.clone()]);
    assert_eq!(refusals[0], ("add rule `service` to chain `outbound`".into(), "EOPNOTSUPP".into()));
    world.put(&[jump("output", "outbound"), service, jump("c", "outbound")]);
    assert_eq!(world.refused(&[jump("forward", "c")]), [("add rule `to c` to chain `forward`".into(), "EOPNOTSUPP".into())]);
}

fn a_jump_that_leads_back_is_refused(world: &mut World) {
    let jump = |from: &str, to: &str| rule(from, "", [Expr::Verdict(Verdict::Jump(to.into()))]);
    world.put(&[table(), base("out", Hook::Output, true), chain("a"), chain("b"), jump("out", "a"), jump("a", "b")]);
    for back in [jump("b", "a"), jump("b", "b"), rule("b", "", [Expr::Verdict(Verdict::Goto("a".into()))])] {
        // Which one depends on the kernel.
        assert!(["ELOOP", "EMLINK"].contains(&world.refused(&[back])[0].1.as_str()));
    }
}

fn our_own_table_is_not_among_what_surrounds_it(world: &mut World) {
    let generation = world.kernel().generation().unwrap();
    world.kernel().commit(generation, &[table(), base("output", Hook::Output, false)]).unwrap();
    let around = world.kernel().surroundings().unwrap();
    assert!(around.tables.is_empty() && around.legacy.is_empty(), "{around:?}");
}

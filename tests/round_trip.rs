//! What is lowered to the kernel's program is lifted from it again: every field with every operator, random rules, and the rules of
//! random policies.

mod policies;

use egressguard::base::net::{Family, Protocol};
use egressguard::base::time::Period;
use egressguard::judge::{judge, packet};
use egressguard::ruleset::field::Field;
use egressguard::ruleset::lift::{lift, lift_rule};
use egressguard::ruleset::lower::{lower, lower_rule};
use egressguard::ruleset::rule::{Action, Carries, Operator, Rate, RateUnit, Rule, Side, Statement, Test};
use egressguard::ruleset::{COMMENT_MAX, Ruleset};
use policies::held::held;
use policies::{NOW, cases};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

fn back(rule: &Rule) -> Rule {
    lift_rule(&lower_rule(rule).expect("the rule is loadable")).unwrap_or_else(|why| panic!("{rule:?}: {why}"))
}

/// The operators that make sense for a field, with values that fill it.
fn operators(field: Field) -> Vec<Operator> {
    let top = if field.octets() == 16 { u128::MAX } else { (1 << (8 * field.octets())) - 1 };
    let mut operators = vec![Operator::Is(0), Operator::Is(top), Operator::IsNot(top - 1), Operator::In("some_set".to_string())];
    if field != Field::Everybody {
        operators.extend([Operator::HasAny(1), Operator::HasNone(top ^ 1)]);
    }
    if has_order(field) {
        operators.push(Operator::Within(1, top));
    }
    operators
}

/// Whether the order in which the kernel compares registers is the order of the field's values.
fn has_order(field: Field) -> bool {
    field != Field::Everybody && (!field.host_order() || field.octets() == 1)
}

fn all_fields() -> Vec<Field> {
    Field::ALL.iter().copied().chain((1..16).map(Field::SocketCgroup)).collect()
}

#[test]
fn every_field_with_every_operator_comes_back() {
    for field in all_fields() {
        for operator in operators(field) {
            let rule = Rule::new("id", vec![Test { field, operator }], vec![], Action::Accept);
            assert_eq!(back(&rule), rule);
        }
    }
}

#[test]
fn every_action_comes_back() {
    let to = || "chain".to_string();
    let actions = [
        Action::Continue,
        Action::Accept,
        Action::Drop,
        Action::Reset,
        Action::Prohibit,
        Action::Return,
        Action::Jump(to()),
        Action::Goto(to()),
    ];
    for action in actions {
        let rule = Rule::new("", vec![], vec![], action);
        assert_eq!(back(&rule), rule);
    }
}

/// Rules about packets of one family and one protocol: a rule that asks for two of them matches nothing and is never written.
fn rules() -> impl Strategy<Value = Rule> {
    let protocols = vec![Protocol::TCP, Protocol::UDP, Protocol::ICMP, Protocol::ICMPV6];
    (select(Family::BOTH.as_slice()), select(protocols))
        .prop_flat_map(|(family, protocol)| {
            let fits = move |field: &Field| {
                field.row().guards.iter().all(|guard| {
                    use egressguard::ruleset::field::Guard;
                    *guard == Guard::Family(family) || *guard == Guard::Protocol(protocol)
                })
            };
            // Octets 2 and 3 of a transport header have a name of their own where the protocol is known; only keys call them so.
            let fields: Vec<Field> = all_fields().into_iter().filter(fits).collect();
            let tested: Vec<Field> = fields.iter().copied().filter(|field| *field != Field::TransportDestinationPort).collect();
            let keys: Vec<Field> = fields.into_iter().filter(|field| !matches!(field, Field::DestinationPort(_))).collect();
            let test = select(tested).prop_flat_map(|field| {
                let value = any::<u128>().prop_map(move |value| value >> (128 - 8 * field.octets()));
                let operator = match field {
                    Field::Everybody => prop_oneof![Just(Operator::Is(0)), Just(Operator::In("everybody".to_string()))].boxed(),
                    Field::NetworkFamily | Field::L4Protocol => {
                        prop_oneof![value.clone().prop_map(Operator::IsNot), Just(Operator::In("some".to_string()))].boxed()
                    }
                    _ => {
                        let bounds = (value.clone(), value.clone()).prop_map(move |(a, b)| {
                            if has_order(field) { Operator::Within(a.min(b), a.max(b)) } else { Operator::IsNot(a) }
                        });
                        let bits = value.clone().prop_map(|bits| bits | 1);
                        prop_oneof![
                            value.clone().prop_map(Operator::Is),
                            value.prop_map(Operator::IsNot),
                            bounds,
                            bits.clone().prop_map(Operator::HasAny),
                            bits.prop_map(Operator::HasNone),
                            Just(Operator::In("addresses_v4".to_string())),
                        ]
                        .boxed()
                    }
                };
                operator.prop_map(move |operator| Test { field, operator })
            });
            let known = vec![
                Test { field: Field::NetworkFamily, operator: Operator::Is(family.nfproto().into()) },
                Test { field: Field::L4Protocol, operator: Operator::Is(protocol.0.into()) },
            ];
            let known = subsequence(known, 0..=2);
            (known, vec(test, 0..4), vec(statements(keys), 0..3), actions(), "[a-z0-9][a-z0-9 ._-]{0,126}")
        })
        .prop_map(|(known, tests, statements, action, id)| Rule::new(id, [known, tests].concat(), statements, action))
}

fn statements(keys: Vec<Field>) -> impl Strategy<Value = Statement> {
    let rate =
        (1u64..1_000_000, select(RateUnit::ALL.as_slice()), any::<u32>()).prop_map(|(packets, unit, burst)| Rate { packets, unit, burst });
    let carries = prop_oneof![Just(Carries::Nothing), Just(Carries::Counter), rate.clone().prop_map(Carries::Over)];
    // Sixteen registers of four octets are all there are.
    let key = vec(select(keys), 1..4);
    prop_oneof![
        (rate, select([Side::Below, Side::Over].as_slice())).prop_map(|(rate, side)| Statement::Limit(rate, side)),
        "[a-z -]{0,60}".prop_map(|prefix| Statement::Log { prefix }),
        (key, 0u64..1_000_000, carries).prop_map(|(key, lives, carries)| Statement::Update {
            set: "ledger".to_string(),
            key,
            lives: Period::from_seconds(lives),
            carries
        }),
    ]
}

fn actions() -> impl Strategy<Value = Action> {
    let to = "[a-z_]{1,20}";
    prop_oneof![
        Just(Action::Continue),
        Just(Action::Accept),
        Just(Action::Drop),
        Just(Action::Reset),
        Just(Action::Prohibit),
        Just(Action::Return),
        to.prop_map(Action::Jump),
        to.prop_map(Action::Goto),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_random_rule_comes_back(rule in rules()) {
        prop_assert_eq!(back(&rule), rule);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_of_a_random_policy_come_back(case in cases()) {
        let ruleset = case.compile();
        let found = lift(&lower(&ruleset, NOW), NOW);
        let held = held(&case);
        prop_assert_eq!(found.foreign, Vec::<String>::new());
        prop_assert_eq!(found.identity, Some(held.identity));
        prop_assert!(found.chains.iter().all(|found| !found.has_foreign));
        let chains: Vec<_> = found.chains.into_iter().map(|found| found.chain).collect();
        for (chain, meant) in chains.iter().zip(&held.chains) {
            prop_assert_eq!(chain, meant);
        }
        prop_assert_eq!(chains.len(), held.chains.len());
        prop_assert_eq!(found.sets, held.sets);
    }

    #[test]
    fn compiling_is_deterministic_and_names_only_what_there_is(case in cases()) {
        let ruleset = case.compile();
        prop_assert_eq!(&ruleset, &case.compile());
        for chain in &ruleset.chains {
            for rule in &chain.rules {
                prop_assert!(rule.id.len() <= COMMENT_MAX, "{}", rule.id);
                for set in rule.sets() {
                    prop_assert!(ruleset.sets.contains_key(set), "{set}");
                }
                if let Action::Jump(to) | Action::Goto(to) = &rule.action {
                    prop_assert!(ruleset.chain(to).is_some(), "{to}");
                }
            }
        }
        let used: std::collections::BTreeSet<&str> = ruleset.chains.iter().flat_map(|chain| &chain.rules).flat_map(Rule::sets).collect();
        let made: std::collections::BTreeSet<&str> = ruleset.sets.keys().map(String::as_str).collect();
        prop_assert_eq!(made, used);
    }

    #[test]
    fn what_is_lifted_is_judged_as_what_was_meant(
        case in cases(),
        from in policies::address(),
        to in policies::address(),
        ports in (any::<u16>(), any::<u16>()),
    ) {
        use egressguard::base::packet::Direction;
        let meant = held(&case);
        let found = lift(&lower(&meant, NOW), NOW);
        let chains = found.chains.into_iter().map(|found| found.chain).collect();
        let found = Ruleset { identity: meant.identity.clone(), chains, sets: found.sets };
        for direction in [Direction::In, Direction::Out, Direction::Forward] {
            let payload = packet::Payload::Tcp { source: ports.0, destination: ports.1, flags: 2 };
            if let Some(packet) = packet::Packet::new(direction, from, to, payload) {
                prop_assert_eq!(judge(&meant, &packet), judge(&found, &packet));
            }
        }
    }
}

/// Two rules with the same forty ports share a kernel rule, whose comment would be longer than the kernel keeps.
#[test]
fn a_rule_that_serves_many_ports_keeps_a_comment_that_the_kernel_holds() {
    use egressguard::base::name::Slug;
    use egressguard::base::port::{PortRange, PortSet};
    use egressguard::policy::{Destination, Line, Outbound, Target, Transport};
    let mut case = policies::plain();
    let way = |id: &str| Outbound {
        id: Slug::nearest(id, "x"),
        to: vec![Destination { target: Target::Net("192.0.2.0/24".parse().unwrap()), line: Line(5) }],
        ports: PortSet::new((0..40).map(|n| PortRange::single(10_000 + 2 * n))),
        protocol: Transport::Tcp,
        scope: None,
        line: Line(5),
    };
    case.policy.outbound = vec![way("a"), way("b")];
    let ruleset = case.compile();
    let found = lift(&lower(&ruleset, NOW), NOW);
    let chains: Vec<_> = found.chains.into_iter().map(|found| found.chain).collect();
    assert_eq!(chains, ruleset.chains);
}

/// A thousand names, addresses and networks at the same ports share the rules of one of each.
#[test]
fn the_number_of_rules_does_not_grow_with_the_number_of_destinations() {
    let with = |count: u8| {
        let mut case = policies::plain();
        let ways = (0..count).flat_map(|n| [format!("10.{n}.0.1/32"), format!("10.{n}.1.0/24"), format!("2001:db8:{n:x}::1/128")]);
        case.policy.outbound = ways.enumerate().map(|(n, net)| policies::way(&format!("way-{n}"), &net, None)).collect();
        let ruleset = case.compile();
        let rules: usize = ruleset.chains.iter().map(|chain| chain.rules.len()).sum();
        (rules, ruleset.sets.len(), ruleset.sets.values().map(|set| set.members.len()).sum::<usize>())
    };
    let (one, many) = (with(1), with(250));
    assert_eq!((one.0, one.1), (many.0, many.1), "rules and sets");
    assert_eq!(many.2 - one.2, 249 * 3, "members");
}

//! Unit tests of `judge.rs`.

use super::*;

use crate::options::Action;

const SECOND: Duration = Duration::from_secs(1);

fn facts(sums: &Record) -> Facts<'_> {
    Facts {
        sums,
        messages: 1000,
        measured: SECOND,
        threads: 1,
        cpus: 2,
        server_cpu: None,
        closed_loop: true,
        ran: &[],
    }
}

#[test]
fn judge_names_client_at_its_limit() {
    let mut sums = Record {
        cpu_ns: 500_000_000,
        ..Record::default()
    };
    let with = |sums: &Record, server| {
        judge(&Facts {
            server_cpu: Some(server),
            ..facts(sums)
        })
    };
    let Judgement {
        client, warnings, ..
    } = with(&sums, SECOND / 2);
    assert!(!client.is_bottleneck && warnings.is_empty(), "{client:?}");
    assert_eq!(client.cpu_per_message_ns, 500_000.0);
    sums.cpu_ns = 950_000_000;
    let Judgement {
        client, warnings, ..
    } = with(&sums, SECOND);
    assert!(
        client.is_bottleneck && client.why.contains("95 %"),
        "{client:?}"
    );
    assert!(warnings.iter().any(|text| text.contains("all CPUs")));
}

#[test]
fn idle_client_is_never_the_limit() {
    for percent in [4, 13] {
        let sums = Record {
            planned: 1000,
            late: 200,
            cpu_ns: percent * 10_000_000,
            ..Record::default()
        };
        let Judgement {
            client, warnings, ..
        } = judge(&facts(&sums));
        assert!(!client.is_bottleneck && client.why.is_empty(), "{client:?}");
        let told = format!("only {percent} %");
        assert!(warnings[0].contains(&told), "{warnings:?}");
    }
}

#[test]
fn working_client_that_is_late_is_the_limit() {
    let sums = Record {
        planned: 1000,
        late: 20,
        cpu_ns: 600_000_000,
        ..Record::default()
    };
    let client = judge(&facts(&sums)).client;
    assert!(client.why.contains("2.0 %"), "{client:?}");
}

#[test]
fn load_far_below_its_plan_is_a_problem() {
    let judged = |planned, unsent| {
        judge(&facts(&Record {
            planned,
            unsent,
            ..Record::default()
        }))
    };
    let Judgement { problems, .. } = judged(2_061_700, 2_000_000);
    assert!(
        problems[0].starts_with("2000000 of 2061700 planned messages (97.0 %) were not sent"),
        "{problems:?}"
    );
    let few = judged(1000, 5);
    assert!(few.problems.is_empty() && few.warnings[0].starts_with("5 of 1000"));
    assert_eq!(judged(100_000, 5).warnings.len(), 0);
}

#[test]
fn failed_or_missing_command_is_a_problem() {
    let mark = |exit_code| Mark {
        exit_code,
        ..Mark::default()
    };
    let ran = |marks: Vec<Mark>, left_out| Ran {
        job: Job {
            first: Duration::from_secs(5),
            every: None,
            action: Action::Shell("true".to_owned()),
        },
        marks,
        left_out,
    };
    let sums = Record::default();
    let judged = |ran: Ran| {
        judge(&Facts {
            ran: &[ran],
            ..facts(&sums)
        })
    };
    let never = judged(ran(Vec::new(), 0)).problems;
    assert_eq!(
        never,
        ["The command `true` never ran: it was due after 5s, and 1s were measured."]
    );
    let failed = judged(ran(vec![mark(Some(0)), mark(Some(3)), mark(None)], 0)).problems;
    assert_eq!(failed, ["2 of 3 runs of the command `true` failed."]);
    let good = judged(ran(vec![mark(Some(0))], 2));
    assert!(good.problems.is_empty() && good.warnings[0].starts_with("2 runs"));
}

#[test]
fn nothing_measured_is_finite_and_a_problem() {
    let sums = Record::default();
    let Judgement {
        client, problems, ..
    } = judge(&Facts {
        messages: 0,
        measured: Duration::ZERO,
        threads: 0,
        cpus: 0,
        closed_loop: false,
        ..facts(&sums)
    });
    assert!(client.share_of_cpus.is_finite() && client.cpu_per_message_ns.is_finite());
    assert_eq!(problems.len(), 1);
}

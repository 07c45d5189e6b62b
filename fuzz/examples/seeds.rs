//! Writes realistic input of the decoders to `corpus/`, as seeds for the fuzzer:
//! `cargo run --example seeds` in this directory.

use std::fs;
use std::path::Path;
use std::time::Duration;

use uppercased::config::{Draft, Facts, from_file};
use uppercased::handover::record::{Message as Handover, Packet};
use uppercased::handover::{HandedOver, HandoverEnd, Part};
use uppercased::memory::frozen::{Frozen, Phase};
use uppercased::wire::{
    Envelope, FromAdmin, FromPreflight, FromWorker, HandOver, Listen, Message, Ready, Rescued,
    Start, StartAdmin, Stop, TakeOver, ToAdmin, ToPreflight, ToWorker,
};
use uppercased_ctl::clock::Tick;
use uppercased_ctl::control::{Options, Reply, Request, ScaleTo};
use uppercased_ctl::identity::{Generation, SlotId, WorkerId};
use uppercased_ctl::proxy_header::{Version, encode};
use uppercased_ctl::status::Rotation;
use uppercased_ctl::status::Status;
use uppercased_ctl::status::{AgentAnswers, Sandboxed};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let write = |target: &str, seeds: Vec<Vec<u8>>| -> Outcome<()> {
        let directory = here.join("corpus").join(target);
        fs::create_dir_all(&directory)?;
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(directory.join(format!("seed-{number}")), seed)?;
        }
        Ok(())
    };
    let settings = fs::read(here.join("../packaging/uppercased.toml"))?;
    write("wire_decode", wire(&settings)?)?;
    write("control_request", control()?)?;
    write("handover_decode", handover())?;
    write("proxy_header", proxy()?)?;
    write("config_file", vec![settings, CONFIG.to_vec()])?;
    let outcome = fs::read(here.join("../tests/cli/bench_report/format_1.json"))?;
    write("bench_outcome", vec![outcome])
}

/// A mixture of everything.
const CONFIG: &[u8] = b"listen = [\"[::]:9999\", \"localhost:80\"]\nworkers = \"auto\"\n\
    idle_timeout = \"5m\"\nallow = [\"10.0.0.0/8\", \"2001:db8::/32\"]\n\
    max_connections_per_source = 5\nproxy_protocol = true\nrebalance = 50\n";

fn wire(settings: &[u8]) -> Outcome<Vec<Vec<u8>>> {
    let facts = Facts {
        cpus: 2,
        lookup: &|_, port| Ok(vec![([192, 0, 2, 1], port).into()]),
    };
    let mut errors = Vec::new();
    let assignments = from_file(settings, Path::new("it.toml"), &mut errors);
    let (config, _) = Draft::new(&assignments, &facts, errors).finish()?;
    let worker = WorkerId {
        slot: SlotId(1),
        generation: Generation(2),
    };
    let slot = SlotId(3);
    let listen = vec![Listen {
        addr: ([127, 0, 0, 1], 9999).into(),
        dual_stack: false,
    }];
    let start = Start {
        config: config.clone(),
        listen: listen.clone(),
        adopt: true,
        adoptable: true,
        standby: true,
        cpu: Some(1),
        max_connections: 100,
        room: 200,
        descriptors: 200,
    };
    let sandbox = Sandboxed {
        layers: vec!["seccomp".into()],
        missing: vec!["landlock: no".into()],
    };
    let active_within = Duration::from_secs(1);
    let part = Some(Part {
        permille: 100,
        at_most: 5,
        active_within,
    });
    let handed = |end, part| HandedOver {
        moved: 4,
        left: 1,
        end,
        part,
    };
    let encoder = Encoder(worker);
    let sandbox_too = sandbox.clone();
    let seeds = [
        encoder.frames([
            ToWorker::Start(Box::new(start)),
            ToWorker::Lend { slot },
            ToWorker::Recall { slot, last: true },
            ToWorker::Stop(Stop {
                lame_duck_ms: 1,
                drain_timeout_ms: 2,
            }),
            ToWorker::Serve,
            ToWorker::HandOver(HandOver {
                to: worker,
                last: true,
                part,
            }),
            ToWorker::TakeOver(TakeOver {
                from: worker,
                expected: 5,
            }),
            ToWorker::Leave {
                drain_timeout_ms: 5,
            },
            ToWorker::Ping,
            ToWorker::Keep,
            ToWorker::Confirm,
        ])?,
        encoder.frames([
            FromWorker::Ready(Ready { listen, sandbox }),
            FromWorker::Failed {
                cause: "why".into(),
            },
            FromWorker::Draining { connections: 3 },
            FromWorker::HandedOver(handed(HandoverEnd::Done, false)),
            FromWorker::HandedOver(handed(
                HandoverEnd::Refused {
                    cause: "full".into(),
                },
                true,
            )),
            FromWorker::ListenerLost { slot },
            FromWorker::Kept,
            FromWorker::Rescued(Rescued {
                life: 2,
                pid: 4242,
                is_handing_over: false,
                connections: 4,
                owed_bytes: 65_536,
                reset: 1,
                took_us: 900,
            }),
        ])?,
        encoder.frames([
            ToAdmin::Start(Box::new(StartAdmin {
                config,
                http: true,
                agent: false,
            })),
            ToAdmin::Status { number: 1 },
        ])?,
        encoder.frames([
            FromAdmin::Ready {
                sandbox: sandbox_too,
            },
            FromAdmin::Ask {
                number: 1,
                agent: AgentAnswers::default(),
            },
        ])?,
        encoder.frames([
            ToPreflight::Resolve,
            ToPreflight::TakeOver,
            ToPreflight::Ask,
        ])?,
        encoder.frames([FromPreflight::Resolved {
            config: serde_json::to_value(uppercased::config::Config::default())?,
        }])?,
    ];
    Ok(seeds.concat())
}

struct Encoder(WorkerId);

impl Encoder {
    fn frames<M: Message, const N: usize>(&self, messages: [M; N]) -> Outcome<Vec<Vec<u8>>> {
        let worker = self.0;
        let encode = |message| Ok(Envelope { worker, message }.encode(1)?);
        messages.into_iter().map(encode).collect()
    }
}

fn control() -> Outcome<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    for request in [
        Request::Reload(Options::default()),
        Request::Upgrade(Options {
            wait: true,
            drain: true,
        }),
        Request::Scale {
            workers: ScaleTo::Exactly(3),
            options: Options::default(),
        },
        Request::Scale {
            workers: ScaleTo::By(-1),
            options: Options::default(),
        },
        Request::Rotation {
            to: Rotation::Drain,
        },
        Request::Cancel,
        Request::Status,
        Request::Stop,
    ] {
        seeds.push(request.encode()?);
    }
    let done = uppercased_ctl::control::Done {
        replaced: 2,
        workers: 2,
        ..Default::default()
    };
    for reply in [
        Reply::Progress("slot 0".into()),
        Reply::Done(done),
        Reply::Failed("why".into()),
        Reply::Refused("why".into()),
        Reply::Status(Box::new(Status {
            slots: vec![Default::default()],
            ..Status::default()
        })),
    ] {
        seeds.push(reply.encode()?);
    }
    Ok(seeds)
}

fn handover() -> Vec<Vec<u8>> {
    let one = Frozen {
        unsent: b"HELLO".to_vec(),
        phase: Phase::Open,
        peer_ended: true,
        finish: false,
        peer: ([192, 0, 2, 1], 80).into(),
        bytes_in: 5,
        bytes_out: 0,
        last_progress: Tick::from_millis(5),
        opened: Tick::from_millis(1),
        header_bytes: 0,
    };
    let waiting = Frozen {
        unsent: Vec::new(),
        phase: Phase::AwaitingHeader,
        ..one.clone()
    };
    let messages = [
        Handover::Begin { coming: 3 },
        Handover::Batch(vec![Ok(one.clone()), Ok(waiting), Ok(one)]),
        Handover::End { moved: 3 },
        Handover::Acknowledged {
            taken: 3,
            left: None,
        },
        Handover::Declined {
            cause: "no descriptor".into(),
        },
        Handover::Refused {
            cause: "full".into(),
        },
    ];
    messages
        .map(|message| {
            Packet {
                sequence: 1,
                message,
            }
            .encode()
        })
        .to_vec()
}

fn proxy() -> Outcome<Vec<Vec<u8>>> {
    let (four, six) = ("192.0.2.7:4000".parse()?, "[2001:db8::1]:4000".parse()?);
    let mut seeds = vec![b"PROXY UNKNOWN\r\n".to_vec()];
    for version in [Version::V1, Version::V2] {
        for address in [four, six] {
            seeds.push(encode(version, address, address));
        }
    }
    // With additional fields: an unknown one, and a checksum, which is correct.
    let mut fields = encode(Version::V2, four, four);
    fields[15] += 11;
    fields.extend([0x04, 0, 1, 0]);
    fields.extend([0x03, 0, 4, 0, 0, 0, 0]);
    let sum = crc32c(&fields).to_be_bytes();
    let end = fields.len();
    fields[end - 4..].copy_from_slice(&sum);
    seeds.push(fields);
    Ok(seeds)
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| (sum >> 1) ^ if sum & 1 == 1 { 0x82F6_3B78 } else { 0 };
    let take = |sum: u32, byte: &u8| (0..8).fold(sum ^ u32::from(*byte), step);
    !bytes.iter().fold(u32::MAX, take)
}

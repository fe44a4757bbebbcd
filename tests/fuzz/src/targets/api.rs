//! What a client may send to the API: any protobuf message, with any image's configuration beside it, becomes a request that PID 1 checks.

use byre_plan::{Origin, Plan};
use byre_protocol::control::{Call, Request};
use byre_protocol::frame;

use crate::{Target, Verdict};

/// See the table.
pub(super) static TARGET: Target = Target {
    name: "api",
    about: "container specifications and exec requests as protobuf: what becomes a definition crosses to PID 1 unchanged, its check ends, and the \
            specification is read back from the labels",
    sources: &[
        "api/proto",
        "api/server/src/spec.rs",
        "api/server/src/convert.rs",
        "api/server/src/exec.rs",
        "runtime/spec/src",
    ],
    longest: 8 * 1024,
    run,
    seeds,
};

fn run(input: &[u8]) -> Verdict {
    let Some((form, input)) = super::pick(input, 2) else { return Verdict::Refused };
    match (form, &super::pieces(input, 2)[..]) {
        (0, [message, config]) => container(message, &String::from_utf8_lossy(config)),
        (_, [message, ..]) => exec(message),
        (_, []) => Verdict::Refused,
    }
}

fn container(message: &[u8], config: &str) -> Verdict {
    let Some(definition) = byre_api_server::fuzz::definition(message, config) else { return Verdict::Refused };
    let call = Call { sequence: 1, request: Request::Create { definition: Box::new(definition.clone()), start: true } };
    if let Ok(bytes) = frame::encode(&call) {
        assert_eq!(frame::decode::<Call>(&bytes).as_ref().ok(), Some(&call));
    }
    let refused = Plan::check(definition.launch, &super::launch::strict(), Origin::Client).err();
    assert!(refused.is_none_or(|refusal| refusal.to_string().len() < 16 * 1024));
    Verdict::Accepted
}

fn exec(message: &[u8]) -> Verdict {
    let definition = super::control::definition();
    let Ok(workload) = Plan::check(definition.launch.clone(), &super::launch::strict(), Origin::Client) else {
        panic!("the example passes the strictest policy")
    };
    let Some(process) = byre_api_server::fuzz::process(&definition, message) else { return Verdict::Refused };
    let sets = process.capabilities;
    assert_eq!(sets, definition.launch.process.capabilities, "a client cannot add capabilities to an exec");
    let _ = Plan::check_exec(process, &workload, &super::launch::strict(), Origin::Client);
    Verdict::Accepted
}

const CONFIG: &[u8] = br#"{"config":{"User":"web:33","Env":["A=b"],"Entrypoint":["/entry"],"Cmd":["x"],"WorkingDir":"srv","Volumes":{"/data/":{}},"StopSignal":"SIGQUIT"}}"#;

fn seeds() -> Vec<Vec<u8>> {
    let messages = byre_api_server::fuzz::examples();
    let [small, large, exec] = &messages;
    vec![
        super::seed(0, super::joined(&[small, CONFIG])),
        super::seed(0, super::joined(&[large, CONFIG])),
        super::seed(1, super::joined(&[exec])),
    ]
}

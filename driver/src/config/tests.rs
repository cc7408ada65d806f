use super::*;
use std::io::Write;

fn load(text: &str) -> Result<Config, ConfigError> {
    load_with(text, &[], vec![])
}

fn load_with(text: &str, environment: &[(&str, &str)], flags: Vec<Setting>) -> Result<Config, ConfigError> {
    let mut file = tempfile::Builder::new().prefix("conf").suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    Config::load(Some(file.path()), environment, flags)
}

fn refusal(text: &str) -> String {
    let message = load(text).unwrap_err().0;
    match message.split_once(".toml") {
        Some((_, rest)) => rest.to_owned(),
        None => message,
    }
}

#[test]
fn nothing_given_serves_the_default_pool() {
    let config = load("").unwrap();
    assert_eq!(config.mode, Mode::All);
    assert_eq!(config.endpoint, "unix:///run/hawser/csi.sock");
    assert_eq!(config.metrics_listen, Listen::Off);
    assert_eq!(config.backends, vec![BackendConfig::new().unwrap()]);
    assert_eq!(config.backends[0].directory, Path::new("/var/lib/hawser/pool"));
}

#[test]
fn who_attaches() {
    assert_eq!(load("").unwrap().attach, Attacher::Controller);
    let set = load_with("attach = \"controller\"", &[("HAWSER_ATTACH", "node")], vec![]);
    assert_eq!(set.unwrap().attach, Attacher::Node);
    assert!(refusal("attach = \"both\"").contains("controller, node"));
}

#[test]
fn every_key() {
    let config = load(
        r#"
        node_id = "n1"
        mode = "node"
        profile = "swarm"
        attach = "node"
        endpoint = "unix:///x.sock"
        state_dir = "/s"
        metrics_listen = "127.0.0.1:9808"
        log_format = "json"
        log_level = "info,pool=debug"
        rpc_deadline_s = 12
        kubelet_registration_dir = "/var/lib/kubelet/plugins_registry"
        io_limit_cgroups = "docker, system.slice/podman.slice"

        [[backend]]
        name = "fast"
        type = "pool"
        directory = "/fast"
        scope = "shared"
        max_volumes_per_node = 7
        orphan_keep_s = 86_400
        allow_fork_only_fence = true
        image_bytes = "10GiB"
        reserve_bytes = "1GiB"

        [[backend]]
        name = "slow"
        directory = "/slow"
        image_bytes = 1073741824
        "#,
    )
    .unwrap();
    assert_eq!(config.rpc_deadline, Duration::from_secs(12));
    assert_eq!(config.io_limit_cgroups, [Path::new("docker"), Path::new("system.slice/podman.slice")]);
    let [fast, slow] = &config.backends[..] else { panic!("two backends") };
    assert_eq!((fast.scope, fast.max_volumes_per_node), (Some(pool::Scope::Shared), Some(7)));
    assert_eq!(
        (fast.orphan_keep_s, fast.image_bytes, fast.reserve_bytes),
        (Some(86_400), Some(10 << 30), Some(1 << 30))
    );
    assert!(fast.allow_fork_only_fence && !slow.allow_fork_only_fence);
    assert_eq!(slow.image_bytes, Some(1 << 30));
}

#[test]
fn cgroups_of_workloads() {
    let of = |text: &str| load(text).unwrap().io_limit_cgroups;
    assert_eq!(of(""), [Path::new("kubepods"), Path::new("kubepods.slice")]);
    assert_eq!(of("profile = \"nomad\""), [Path::new("nomad"), Path::new("nomad.slice")]);
    assert_eq!(of("profile = \"swarm\""), [Path::new("docker"), Path::new("system.slice")]);
    assert!(of("io_limit_cgroups = \"\"").is_empty());
    for wrong in ["/kubepods", "kubepods,../x", ".", "a/../b"] {
        assert!(refusal(&format!("io_limit_cgroups = {wrong:?}")).contains("below the root"), "{wrong}");
    }
}

#[test]
fn a_wrong_key_names_its_line_and_the_nearest() {
    assert_eq!(refusal("mode = \"all\"\nendpont = \"x\"\n"), ":2: unknown key \"endpont\"; did you mean \"endpoint\"?");
    assert_eq!(
        refusal("\n[[backend]]\nname = \"a\"\ndirectroy = \"/x\""),
        ":4: unknown key \"directroy\"; did you mean \"directory\"?"
    );
    assert!(
        refusal("zzzzzz = 1")
            .starts_with(":1: unknown key \"zzzzzz\"; the known ones are agent, agents, attach, backend,")
    );
    assert_eq!(refusal("[backends]\nname = \"a\""), ":1: unknown key \"backends\"; did you mean \"backend\"?");
}

#[test]
fn pages_leave_the_machine_only_where_that_is_written() {
    let config = load("metrics_listen = \"insecure:[::]:9808\"").unwrap();
    assert_eq!(config.metrics_listen, Listen::Tcp("[::]:9808".parse().unwrap()));
}

#[test]
fn a_wrong_value_names_its_line_and_what_it_takes() {
    assert_eq!(refusal("\n\nmode = \"nod\""), ":3: mode is \"nod\"; it takes one of controller, node, all");
    assert_eq!(refusal("state_dir = \"here\""), ":1: state_dir is \"here\"; it takes an absolute path");
    assert!(refusal("rpc_deadline_s = -1").contains("from 1 to 3600"));
    assert!(refusal("metrics_listen = \"0.0.0.0:9808\"").contains("write insecure:0.0.0.0:9808 where"));
    assert!(refusal("metrics_listen = \"insecure:all\"").contains("loopback"));
    assert!(refusal("mode = [\"node\"]").starts_with(":1: mode takes one string"));
    assert!(refusal("[[backend]]\nimage_bytes = \"big\"").starts_with(":2: image_bytes is \"big\""));
    assert!(refusal("backend = 3").contains("[[backend]]"));
    assert!(refusal("mode = \"all\"\nmode = \"all\"").starts_with(":2: "));
    assert!(refusal("mode = ").starts_with(":1: "));
}

#[test]
fn the_environment_overrides_the_file_and_flags_override_both() {
    let flag = |value: &str| {
        vec![Setting { key: "mode".to_owned(), value: value.to_owned(), origin: "flag --mode".to_owned() }]
    };
    let file = "mode = \"controller\"\nendpoint = \"unix:///file\"";
    let environment =
        [("HAWSER_MODE", "node"), ("HAWSER_ENDPOINT", "unix:///own"), ("CSI_ENDPOINT", "unix:///csi"), ("HOME", "/")];
    let config = load_with(file, &environment, vec![]).unwrap();
    assert_eq!((config.mode, config.endpoint.as_str()), (Mode::Node, "unix:///own"));
    let config = load_with(file, &environment[2..], flag("all")).unwrap();
    assert_eq!((config.mode, config.endpoint.as_str()), (Mode::All, "unix:///csi"));
    let config = load_with("", &[("HAWSER_BACKEND_TYPE", "memory")], vec![]).unwrap();
    assert_eq!(config.backends[0].kind, BackendKind::Memory);
    let wrong = load_with("", &[("HAWSER_MODUS", "x")], vec![]).unwrap_err().0;
    assert_eq!(wrong, "environment variable HAWSER_MODUS: unknown key \"modus\"; did you mean \"mode\"?");
    assert_eq!(
        load_with("", &[], flag("x")).unwrap_err().0,
        "flag --mode: mode is \"x\"; it takes one of controller, node, all"
    );
}

#[test]
fn variables_that_are_no_settings_do_no_harm() {
    let links = [
        ("HAWSER_SERVICE_HOST", "10.0.0.1"),
        ("HAWSER_PORT", "tcp://10.0.0.1:80"),
        ("HAWSER_CONTROLLER_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("HAWSER_TEST_EFFECT", "kill:1"),
        ("HAWSER_CONFIG", "/x"),
    ];
    assert!(load_with("", &links, vec![]).is_ok());
}

#[test]
fn backends_that_cannot_stand_together() {
    assert!(refusal("[[backend]]\nname = \"a\"\n[[backend]]\nname = \"a\"").contains("name \"a\""));
    assert!(refusal("[[backend]]\ntype = \"memory\"\n[[backend]]\nname = \"b\"").contains("memory"));
}

const CREDENTIALS: &str = "[agent]\nca = \"/c\"\ncert = \"/d\"\nkey = \"/k\"\n";

#[test]
fn agents_and_who_they_are() {
    let node = load(&format!(
        "node_id = \"n1\"\nmode = \"node\"\n{CREDENTIALS}listen = \"0.0.0.0:9809\"\n[[backend]]\nscope = \"local\""
    ));
    let node = node.unwrap();
    let settings = node.agent.unwrap();
    assert_eq!((settings.listen.unwrap().port(), settings.heartbeat), (9809, Duration::from_millis(250)));
    assert_eq!(node.backends[0].name, BackendName::of_node(&node.node_id), "its own name, so that ids are its own");
    // A shared pool has one name everywhere, and a name that is given stays.
    for (backend, name) in [("", "pool"), ("[[backend]]\nscope = \"local\"\nname = \"mine\"", "mine")] {
        let config = load(&format!("{CREDENTIALS}listen = \"0.0.0.0:9809\"\n{backend}")).unwrap();
        assert_eq!(config.backends[0].name.as_str(), name);
    }
    let agents =
        "[[agents]]\nnode = \"n1\"\naddress = \"10.0.0.1:9809\"\n[[agents]]\nnode = \"n2\"\naddress = \"n2:1\"\n";
    let controller = load(&format!("mode = \"controller\"\n{CREDENTIALS}{agents}")).unwrap();
    assert!(controller.backends.is_empty(), "no pool of its own beside those of others");
    assert_eq!(controller.agents.len(), 2);
    assert_eq!(load(&format!("{CREDENTIALS}{agents}")).unwrap().backends.len(), 1);
    let environment = [("HAWSER_AGENT_LISTEN", "127.0.0.1:1"), ("HAWSER_AGENT_PORT", "tcp://10.0.0.1:80")];
    assert!(load_with(CREDENTIALS, &environment, vec![]).unwrap().agent.unwrap().listen.is_some());
}

#[test]
fn nothing_listens_or_connects_without_certificates() {
    let agents = "[[agents]]\nnode = \"n1\"\naddress = \"n1:9809\"\n";
    for text in ["[agent]\nlisten = \"127.0.0.1:9809\"", agents, "[agent]\ncert = \"/d\"\n"] {
        let message = refusal(text);
        assert!(message.contains("[agent] lacks ca and") && message.contains("hawser certificates"), "{message}");
    }
    let message = refusal(&format!("mode = \"controller\"\n{CREDENTIALS}listen = \"127.0.0.1:1\""));
    assert!(message.contains("mode is \"controller\""), "{message}");
    assert_eq!(refusal("[agent]\nlisen = \"x\""), ":2: unknown key \"lisen\"; did you mean \"listen\"?");
    assert!(
        refusal("[agent]\nlisten = \"9809\"").starts_with(":2: listen is \"9809\"; it takes an address and a port")
    );
    assert!(
        refusal("[[agents]]\nnode = \"n1\"\naddress = \"n1\"").starts_with(":3: address is \"n1\"; it takes a host")
    );
    assert!(refusal("\n[[agents]]\nnode = \"n1\"").starts_with(":2: an entry of agents needs a node and an address"));
    assert!(refusal(&format!("{CREDENTIALS}{agents}{agents}")).contains("node n1 is given twice"));
    assert!(refusal("agents = 3").contains("[[agents]]") && refusal("[[agent]]").contains("[agent]"));
}

#[test]
fn a_missing_file_is_an_error_only_when_it_was_asked_for() {
    let error = Config::load(Some(Path::new("/nonexistent/hawser.toml")), [], vec![]).unwrap_err();
    assert!(error.0.contains("/nonexistent/hawser.toml"), "{error}");
}

#[test]
fn variables_that_are_no_text() {
    use std::os::unix::ffi::OsStringExt;
    let with = |name: &[u8]| {
        let variable = (OsString::from_vec(name.to_vec()), OsString::from_vec(vec![0xff]));
        Config::load(Some(Path::new("/dev/null")), [variable], vec![])
    };
    assert!(with(b"LS_COLORS").is_ok() && with(b"HAWSER_\xff").is_ok());
    assert!(with(b"HAWSER_MODE").unwrap_err().0.contains("HAWSER_MODE"));
}

#[test]
fn a_pool_is_of_one_backend() {
    let of = |other: &str| {
        refusal(&format!("[[backend]]\nname=\"a\"\ndirectory=\"/p\"\n[[backend]]\nname=\"b\"\ndirectory={other:?}\n"))
    };
    assert!(of("/p").contains("two backends have the directory /p"));
    assert!(of("/p/./").contains("two backends have the directory /p"));
}

const KUBERNETES: &str = "[kubernetes]\nenabled = true\nnamespace = \"hawser-system\"\nname = \"hawser\"\n";

#[test]
fn kubernetes_brings_agents_and_certificates() {
    let controller = load(&format!("mode = \"controller\"\n{KUBERNETES}")).unwrap();
    assert!(controller.backends.is_empty(), "no pool of its own");
    assert_eq!(controller.agent.unwrap().files, None);
    let settings = controller.kubernetes.unwrap();
    assert_eq!((settings.namespace.as_str(), settings.name.as_str()), ("hawser-system", "hawser"));
    let explicit = load(&format!("mode = \"controller\"\n{KUBERNETES}[[backend]]\ndirectory = \"/p\"")).unwrap();
    assert_eq!(explicit.backends.len(), 1);
    let node = load(&format!("mode = \"node\"\n{KUBERNETES}[agent]\nlisten = \"0.0.0.0:9809\"")).unwrap();
    assert_eq!(node.agent.unwrap().files, None);
    assert_eq!(node.backends.len(), 1);
    let given = load(&format!("mode = \"node\"\n{KUBERNETES}{CREDENTIALS}listen = \"0.0.0.0:9809\"")).unwrap();
    assert!(given.agent.unwrap().files.is_some(), "what is given is used");
    // A node that serves no pool needs nobody's certificate.
    assert_eq!(load(&format!("mode = \"node\"\n{KUBERNETES}")).unwrap().agent, None);
    let environment = [
        ("HAWSER_KUBERNETES_ENABLED", "true"),
        ("HAWSER_KUBERNETES_NAMESPACE", "a"),
        ("HAWSER_KUBERNETES_NAME", "b"),
        ("HAWSER_MODE", "controller"),
    ];
    assert_eq!(load_with("", &environment, vec![]).unwrap().kubernetes.unwrap().name, "b");
    assert_eq!(load(&KUBERNETES.replace("true", "false")).unwrap().kubernetes, None);
}

#[test]
fn kubernetes_half_configured() {
    let controller = "mode = \"controller\"\n";
    let message = refusal(&format!("{controller}[kubernetes]\nenabled = true\nname = \"a\""));
    assert!(message.contains("kubernetes.namespace is not set (HAWSER_KUBERNETES_NAMESPACE)"), "{message}");
    let message = refusal(&format!("{controller}[kubernetes]\nenabled = true\nnamespace = \"a\""));
    assert!(message.contains("kubernetes.name is not set"), "{message}");
    assert!(refusal(KUBERNETES).contains("mode is \"all\""));
    let agents = "[[agents]]\nnode = \"n1\"\naddress = \"n1:9809\"\n";
    assert!(refusal(&format!("{controller}{KUBERNETES}{agents}")).contains("take [[agents]] out"));
    let message = refusal(&format!("{controller}{KUBERNETES}[agent]\ncert = \"/d\"\n"));
    assert!(message.contains("[agent] lacks ca and key"), "{message}");
    for wrong in ["", "-a", "a_b", "A", "../x"] {
        assert!(refusal(&format!("[kubernetes]\nname = {wrong:?}")).starts_with(":2: name is "), "{wrong}");
    }
    assert_eq!(refusal("[kubernetes]\nnamepace = \"x\""), ":2: unknown key \"namepace\"; did you mean \"namespace\"?");
    assert!(refusal("kubernetes = 3").contains("[kubernetes]"));
}

const SUPERVISED: &str = r#"
    mode = "controller"
    [kubernetes]
    enabled = true
    namespace = "storage"
    name = "hawser"
    [failover]
    enabled = true
"#;

#[test]
fn failover_takes_the_keys_of_the_supervisor() {
    let text = format!(
        "{SUPERVISED}replica = \"a\"\nsuspect_ms = 4000\nisolated_ms = 60000\ngiven_up_ms = \"off\"\nretry_max_ms = 900\n"
    );
    let settings = load(&text).unwrap().failover.unwrap();
    let config = settings.config;
    assert_eq!((config.suspect_ms, config.isolated_ms, config.given_up_ms), (4_000, Some(60_000), None));
    assert_eq!((config.retry_ms, config.heartbeat_ms, settings.replica.as_str()), ((200, 900), 250, "a"));
    let by_pod =
        load_with(SUPERVISED, &[("HAWSER_POD_NAME", "b"), ("HAWSER_FAILOVER_MAX_AT_ONCE", "3")], vec![]).unwrap();
    let settings = by_pod.failover.unwrap();
    assert_eq!((settings.replica.as_str(), settings.config.max_at_once), ("b", 3));
    assert!(load(&SUPERVISED.replace("controller", "node")).unwrap().failover.is_none(), "a node supervises nobody");
    assert!(load("").unwrap().failover.is_none());
}

#[test]
fn failover_refuses_what_cannot_work() {
    let with = |line: &str| load(&format!("{SUPERVISED}{line}\n")).unwrap_err().0;
    assert!(
        with("suspect_ms = 1000").contains("suspect_ms is 1000, and must be at least 1750"),
        "{}",
        with("suspect_ms = 1000")
    );
    assert!(with("heartbeat_ms = 100").contains("agent.heartbeat_ms"));
    assert!(with("suspekt_ms = 3000").contains("did you mean \"suspect_ms\""));
    assert!(with("given_up_ms = \"never\"").contains("or off"));
    assert!(load("[failover]\nenabled = true").unwrap_err().0.contains("kubernetes.enabled is not"));
}

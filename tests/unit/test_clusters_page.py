"""What docs/clusters.md tells an operator to type is there: files, settings, options, and the names of objects."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from prm_ray.cli import _VERBS, _parsed
from prm_ray.config import RunConfig, load_config
from prm_ray.settings import Section
from prm_ray.stages.cluster import PROXY_SETTING
from prm_ray.submitting.verbs import _submit_parser
from tests.manifests import RAY_OBJECTS, ROOT, documents, pods, the

PAGE = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
OF_KUBERAY = {"gcsFaultToleranceOptions", "submitterPodTemplate"}
"""Fields that the page names and our manifests do not use."""


def commands() -> list[list[str]]:
    """The words of each command in the page's blocks, without comments."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", PAGE, flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ")
    found = []
    for line in re.sub(r"'\{.*?\}'", "JSON", lines, flags=re.S).splitlines():
        words = shlex.split(line, comments=True)
        found += [words] if words else []
    return found


def in_code() -> list[str]:
    """What the page sets in code, block or not, word by word."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.S))
    return [word.strip("',;") for text in [*spans, *map(shlex.join, commands())] for word in text.split()]


def of(program: str) -> list[list[str]]:
    """Commands of one program, without its name; those between `&&` and the like too."""
    found = []
    for words in commands():
        ends = [i for i, word in enumerate(words) if word in ("&&", "|", "&", ">")]
        for start, end in zip([0, *(i + 1 for i in ends)], [*ends, len(words)], strict=True):
            found += [words[start + 1 : end]] if words[start:end][:1] == [program] else []
    return found


def of_verb(verb: str) -> list[list[str]]:
    return [words for words in of("prm-ray") if words[0] == verb]


def test_every_file_of_ours_that_the_page_names_is_there():
    named = {word for word in in_code() if re.match(r"(cluster|configs|docs|jobs)/\w", word)}
    named |= {f"docs/{name}" for name in re.findall(r"\]\((\w+\.md)", PAGE)}
    assert len(named) > 10 and [name for name in named if not list(ROOT.glob(name))] == []


def test_every_manifest_is_on_the_page():
    assert [path.name for path in (ROOT / "cluster").iterdir() if f"cluster/{path.name}" not in PAGE] == []


def configured(verb: str | None = None) -> list[list[str]]:
    """CONFIG and the overrides behind it, of every command that has them, or of those of one verb."""
    found = []
    for words in commands() if verb is None else of_verb(verb):
        for i, word in enumerate(words):
            if word.startswith("configs/") and word.endswith(".toml"):
                found.append([word, *(each for each in words[i + 1 :] if re.match(r"\w+\.\w+=", each))])
    return found


@pytest.mark.parametrize("words", configured(), ids=lambda words: " ".join(words)[:60])
def test_every_run_of_the_page_has_settings_that_exist(words: list[str]):
    load_config(ROOT / words[0], words[1:])
    assert any(word.startswith("run.dir=/shared/") for word in words) or words in configured("plan")


def test_every_setting_that_the_page_mentions_exists():
    sections: dict[str, Section] = {
        field.alias or name: field.default for name, field in RunConfig.model_fields.items()
    }
    mentioned = [match.groups() for word in in_code() if (match := re.match(r"([a-z_]+)\.([a-z_]+)(?:=|$)", word))]
    ours = [
        (section, key) for section, key in mentioned if section in sections and key not in ("toml", "yaml", "jsonl")
    ]
    assert len(ours) > 5
    assert [(section, key) for section, key in ours if key not in type(sections[section]).model_fields] == []


def test_every_command_of_ours_can_be_parsed():
    ran = of("prm-ray")
    assert {words[0] for words in ran} == {"key", "plan", "serve", "submit"}
    for verb, *words in ran:
        if verb == "submit":
            _, (verb, *words) = _submit_parser().parse_known_args(words)
        assert verb in _VERBS
        _parsed(verb, words)


def test_what_the_page_plans_is_the_run_of_the_job():
    """By numbers of problems in place of files, which lie where `plan` does not see them."""
    (planned,) = of_verb("plan")
    text = (ROOT / "cluster/ray-job.yaml").read_text(encoding="utf-8")
    (comment,) = re.findall(r"^#     prm-ray (plan .*?)\n#$", text, flags=re.M | re.S)
    assert planned == comment.replace("\\\n#", "").split()
    job = the("ray-job.yaml", "RayJob")["spec"]["entrypoint"].split()[3:]
    own = [word for word in job if not word.startswith(("run.dir=", "problems."))]
    assert [word for word in planned if re.match(r"configs/|(?!problems\.)\w+\.\w+=", word)] == own


def test_the_command_that_names_the_image_can_be_repeated_with_another_tag(tmp_path: Path):
    (typed,) = of("sed")
    assert typed[-1] == "cluster/ray-*.yaml"
    own = [tmp_path / path.name for path in ROOT.glob(typed[-1])]
    for copy in own:
        copy.write_bytes((ROOT / "cluster" / copy.name).read_bytes())
    for tag in ("0.1.0", "0.1.1"):
        subprocess.run(["sed", *[word.replace("0.1.0", tag) for word in typed[:-1]], *own], check=True)
        images = re.findall(r"image: (.*)", "".join(copy.read_text(encoding="utf-8") for copy in own))
        assert images == [f"REGISTRY/prm-ray:{tag}"] * 8


def test_what_the_page_makes_on_kubernetes_it_takes_down_again():
    ran = of("kubectl")
    applied = {words[2] for words in ran if words[:2] == ["apply", "-f"]}
    deleted = {word for words in ran if words[0] == "delete" for word in words[1:] if word.startswith("cluster/")}
    assert applied == deleted and len(applied) == 6
    made = {(words[1], words[3 if words[1] == "secret" else 2]) for words in ran if words[0] == "create"}
    removed = {(words[1], name) for words in ran if words[0] == "delete" for name in words[2:]}
    assert len(made) == 6 and made <= removed
    labels = {word.split("=")[0] for words in ran if words[:2] == ["label", "namespace"] for word in words[3:]}
    assert labels == {"prm-ray/client", "prm-ray/client-"}


def test_a_pod_is_there_before_anything_is_copied_into_it():
    uses = [words[0] for words in of("kubectl") if {"copy", "pod/copy"} & set(words)]
    assert uses[:3] == ["run", "wait", "exec"]


def test_whoever_starts_ray_by_hand_gives_workers_the_priority_that_the_image_gives_them():
    setting = "RAY_worker_niceness=0"
    for name in ("cluster/Dockerfile", "docs/clusters.md", "docs/running.md"):
        assert setting in (ROOT / name).read_text(encoding="utf-8")
    assert PAGE.index(f"export {setting}") < PAGE.index("\nray start --head")


def test_whoever_starts_ray_by_hand_gives_a_servers_proxies_their_answer_for_when_nobody_is_there():
    assert PAGE.index(f"export {'='.join(PROXY_SETTING)}") < PAGE.index("\nray start --head")


def test_every_job_of_the_page_exists():
    modules = {word for word in in_code() if word.startswith("jobs.")}
    assert modules and all((ROOT / module.replace(".", "/")).with_suffix(".py").is_file() for module in modules)


def click_command(group: Any, words: list[str]) -> tuple[click.Command, list[str]]:
    while isinstance(group, click.Group):
        group, words = group.commands[words[0]], words[1:]
    return group, words


@pytest.mark.parametrize("program", ["ray", "serve"])
def test_every_command_of_ray_has_options_that_exist(program: str):
    from ray.scripts import scripts
    from ray.serve import scripts as serve_scripts

    group = {"ray": scripts.cli, "serve": serve_scripts.cli}[program]
    assert of(program)
    for typed in of(program):
        command, words = click_command(group, typed)
        known = {option for parameter in command.params for option in parameter.opts}
        own = words[: words.index("--")] if "--" in words else words
        assert {word.split("=")[0] for word in own if word.startswith("--")} <= known, typed


def test_every_secret_that_the_page_makes_is_one_that_a_manifest_reads_and_the_other_way_round():
    made = {words[3] for words in of("kubectl") if words[:3] == ["create", "secret", "generic"]}
    read = set()
    for name in RAY_OBJECTS:
        for pod in pods(name):
            read |= {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
            read |= {source["secretRef"]["name"] for source in pod["containers"][0]["envFrom"]}
    read.add(the("ray-job.yaml", "RayJob")["spec"]["rayClusterSpec"]["authOptions"]["secretName"])
    read.add(documents("monitoring.yaml")[1]["spec"]["authorization"]["credentials"]["name"])
    assert made == read


def test_objects_that_the_page_asks_about_have_the_names_in_the_manifests():
    names = {kind: the(file, kind)["metadata"]["name"] for file, kind in _KINDS.items()}
    services = {f"{name}-head-svc" for name in names.values()} | {f"{names['RayService']}-serve-svc"}
    asked = {(kind, name) for kind, name in re.findall(r"kubectl get (ray\w+) ([\w-]+)", PAGE)}
    assert asked == {("rayjob", names["RayJob"]), ("rayservice", names["RayService"])}
    named = set(re.findall(r"(?:service/|http://)([\w-]+-svc)", PAGE))
    assert named and named <= services
    (claim,) = re.findall(r'"claimName": "([\w-]+)"', PAGE)
    assert claim == documents("storage.yaml")[0]["metadata"]["name"]


_KINDS = {"ray-cluster.yaml": "RayCluster", "ray-job.yaml": "RayJob", "ray-service.yaml": "RayService"}


def test_labels_that_the_page_selects_by_are_those_of_the_pods():
    (selector,) = re.findall(r"--selector=(\S+)", PAGE)
    wanted = dict(each.split("=") for each in selector.split(","))
    head = the("ray-job.yaml", "RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]["labels"]
    assert wanted.items() <= (head | {"ray.io/node-type": "head"}).items()
    assert "prm-ray/client=true" in PAGE
    policies = documents("network-policy.yaml")
    assert '{"prm-ray/client": "true"}' in str([policy["spec"] for policy in policies]).replace("'", '"')


def test_fields_that_the_page_talks_about_are_in_the_manifests():
    files = "\n".join(
        (ROOT / "cluster" / path).read_text(encoding="utf-8") for path in Path(ROOT / "cluster").iterdir()
    )
    fields = {word for word in in_code() if re.fullmatch(r"[a-z]+([A-Z][a-z0-9]+)+V?\d?", word)}
    assert len(fields) > 8 and [field for field in fields - OF_KUBERAY if field not in files] == []


def test_links_inside_the_page_lead_somewhere():
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.+)$", PAGE, flags=re.M)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= headings

"""Settings: command line over environment over file over default, checked all at once.

`load_config` returns a frozen `Config` or raises one `ConfigError` with a line for every mistake. Secrets are read
here, handed to `etl.logs.register_secret`, and appear in no `repr`, message or dump.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from pydantic import BaseModel, BeforeValidator, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from etl.errors import ConfigError
from etl.logs import redact, register_secret
from etl.settings import (
    DEFAULT_BASE_URL,
    PUBLIC_KEY,
    SECRET_KEY,
    Config,
    Database,
    Export,
    Http,
    Project,
    Section,
    Service,
    Sync,
)
from etl.values import SeveralError, format_duration, near, normalise_base_url, shown, variable_name
from etl.yamlfile import read_mapping

__all__ = ["Config", "Database", "Export", "Http", "Project", "Service", "Sync", "describe", "load_config"]

CONFIG_FILE = "config.yaml"
PREFIX = "LANGFUSE_ETL_"
BASE_URL, HOST = "LANGFUSE_BASE_URL", "LANGFUSE_HOST"
DATABASE_URL = "LANGFUSE_ETL_DATABASE_URL"

NO_PROJECT = (
    f"no Langfuse project is configured: set {BASE_URL}, {PUBLIC_KEY} and {SECRET_KEY} "
    f"(in Langfuse: Settings, API Keys), or list projects in {CONFIG_FILE}; "
    "`langfuse-etl demo` needs no account"
)

_SECTIONS: dict[str, type[Section]] = {
    "database": Database,
    "sync": Sync,
    "http": Http,
    "export": Export,
    "service": Service,
}


def _names(model: type[Section]) -> list[str]:
    """The names of a section's settings, as users write them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _variable(setting: str) -> str:
    """`sync.every` -> `LANGFUSE_ETL_SYNC__EVERY`."""
    return PREFIX + setting.upper().replace(".", "__")


PROJECT_SETTINGS = tuple(name for name in _names(Project) if name not in ("public_key", "secret_key"))
SETTINGS = tuple(f"{section}.{name}" for section, model in _SECTIONS.items() for name in _names(model))
# Keep in step with docs/configuration.md, which a test compares.
VARIABLES = (DATABASE_URL, f"{DATABASE_URL}_FILE", *map(_variable, SETTINGS))

_Loc = tuple[str | int, ...]  # where pydantic found a mistake


def _section(value: object) -> object:
    """A section; one that is left empty (`sync:` with nothing below) has its defaults."""
    if value is None:
        return {}
    if isinstance(value, (Mapping, BaseModel)):
        return value
    raise ValueError(f"must be a mapping of settings, not {shown(value)}")


class _Settings(BaseSettings):
    """The sections as the sources give them; `projects` is judged entry by entry, elsewhere."""

    projects: Any = None
    database: Annotated[Database, BeforeValidator(_section)] = Database()
    sync: Annotated[Sync, BeforeValidator(_section)] = Sync()
    http: Annotated[Http, BeforeValidator(_section)] = Http()
    export: Annotated[Export, BeforeValidator(_section)] = Export()
    service: Annotated[Service, BeforeValidator(_section)] = Service()

    model_config = SettingsConfigDict(
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        enable_decoding=False,  # values of the environment are read by the same rules as those of the file
    )


class _File(YamlConfigSettingsSource):
    """The settings file, read strictly. Without a file: no values."""

    def __init__(self, path: Path | None) -> None:
        self.problems: list[str] = []
        super().__init__(_Settings, yaml_file=path)

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        values, self.problems = read_mapping(Path(file_path))
        return values


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    overrides: Mapping[str, Any] | None = None,
    require_projects: bool = True,
) -> Config:
    """Read, check and merge all settings.

    Args:
        path: The settings file; None: `config.yaml` in the current folder if there is one. Relative paths in the
            file, and the defaults of paths it leaves out, are relative to its folder; those of the environment and
            of the command line to the current folder.
        environ: The environment; blank values count as not set.
        overrides: Values from the command line, by dotted name (`export.directory`); None values are skipped.
        require_projects: False for commands that need the database only: then keys may be missing and nothing
            about keys is a mistake; `projects` may be empty, and `Project.has_keys` false.
    Raises:
        ConfigError: `problems` holds a line for every mistake found.
    """
    environ = {name: value for name, value in environ.items() if value.strip()}
    overrides = {name: value for name, value in (overrides or {}).items() if value is not None}
    if path is None and Path(CONFIG_FILE).is_file():
        path = Path(CONFIG_FILE)
    if path is not None and not path.is_file():
        raise ConfigError(f"{path}: {'is not a file' if path.exists() else 'there is no such settings file'}")
    here = Path.cwd()
    beside = path.absolute().parent if path else here

    file = _File(path)
    entries = file.yaml_data.get("projects")
    environment, environment_problems = _read_environment(environ, _named_variables(entries))
    settings, setting_problems = _read_settings(file, environment, overrides)
    projects, project_problems = _read_projects(entries, environ, require_keys=require_projects)
    problems = file.problems + environment_problems + setting_problems + project_problems
    if problems or settings is None:
        raise ConfigError([redact(problem) for problem in problems])

    def folder_of(setting: str) -> Path:
        return here if setting in environment or setting in overrides else beside

    url = _anchored_url(settings.database.url, folder_of("database.url"))
    directory = folder_of("export.directory") / settings.export.directory
    _register_password(url)
    return Config(
        projects=projects,
        database=settings.database.model_copy(update={"url": url}),
        sync=settings.sync,
        http=settings.http,
        export=settings.export.model_copy(update={"directory": directory}),
        service=settings.service,
    )


def describe(config: Config) -> dict[str, Any]:
    """The settings as plain JSON values, named and spelled as in the file, without a secret."""
    dump: dict[str, Any] = {
        "projects": [
            {
                **{name: _plain(getattr(project, name)) for name in PROJECT_SETTINGS},
                "keys": "set" if project.has_keys else "missing",
            }
            for project in config.projects
        ]
    }
    for section, model in _SECTIONS.items():
        fields = model.model_fields.items()
        dump[section] = {field.alias or name: _plain(getattr(getattr(config, section), name)) for name, field in fields}
    dump["database"]["url"] = config.database.safe_url
    return dump


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


# --- The sources ---


def _read_environment(environ: Mapping[str, str], named: set[object]) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Settings given by `LANGFUSE_ETL_*`.

    Args:
        named: Variables that project entries name; they may begin with our prefix too.
    Returns:
        Dotted name -> (variable, value); and a line for each variable that nobody knows.
    """
    found = {
        setting: (_variable(setting), environ[_variable(setting)])
        for setting in SETTINGS
        if _variable(setting) in environ
    }
    url, problems = _secret(environ, DATABASE_URL)
    if url:
        if "database.url" in found:
            problems.append(f"{DATABASE_URL} and {_variable('database.url')} are both set; keep one")
        found["database.url"] = (DATABASE_URL, url)
    for name in environ:
        if name.startswith(PREFIX) and name not in VARIABLES and not named & {name, name.removesuffix("_FILE")}:
            known = near(name, VARIABLES) or f"; known: {', '.join(VARIABLES)}"
            problems.append(f"{name}: unknown setting{known}")
    return found, problems


def _read_settings(
    file: _File, environment: Mapping[str, tuple[str, str]], overrides: Mapping[str, Any]
) -> tuple[_Settings | None, list[str]]:
    """Every section, merged from all sources; None beside at least one problem."""
    variables = EnvSettingsSource(_Settings)
    variables.env_vars = {_variable(setting).lower(): value for setting, (_, value) in environment.items()}

    class Layered(_Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, variables, file  # first wins; `env_settings` would read the process's own

    command_line: dict[str, Any] = {}
    for setting, value in overrides.items():
        section, _, name = setting.partition(".")
        command_line.setdefault(section, {})[name] = value

    def place(loc: _Loc) -> str:
        setting = ".".join(str(part) for part in loc[:2])
        if setting in overrides:
            label = f"{setting} (command line)"
        else:
            label, _ = environment.get(setting, (setting, ""))
        return label + "".join(f"[{part}]" for part in loc[2:])

    def siblings(loc: _Loc) -> dict[str, str]:
        if len(loc) == 1:
            return {name: name for name in ("projects", *_SECTIONS)}
        return {name: f"{loc[0]}.{name}" for name in _names(_SECTIONS[str(loc[0])])}

    try:
        return Layered(**command_line), []
    except ValidationError as error:
        return None, _lines(error, place, siblings)


def _lines(
    error: ValidationError, place: Callable[[_Loc], str], siblings: Callable[[_Loc], Mapping[str, str]]
) -> list[str]:
    """One sentence for each mistake that pydantic found, in our words.

    Args:
        place: A location as users know it.
        siblings: For an unknown setting, the names allowed in its place, each with its full path.
    """
    lines: list[str] = []
    for one in error.errors(include_url=False, include_input=False):
        loc, cause = one["loc"], one.get("ctx", {}).get("error")
        if isinstance(cause, SeveralError):
            lines += [place(loc) + line for line in cause.lines]
        elif one["type"] == "extra_forbidden":
            lines.append(f"{place(loc)}: {_unknown(str(loc[-1]), siblings(loc))}")
        elif one["type"] == "missing":
            lines.append(f"{place(loc)}: is missing")
        else:
            lines.append(f"{place(loc)}: {cause or 'is not valid'}")
    return lines


def _unknown(name: str, siblings: Mapping[str, str]) -> str:
    """`unknown setting; did you mean http.timeout? Allowed: …`"""
    elsewhere = {setting.partition(".")[2]: setting for setting in SETTINGS}
    match = difflib.get_close_matches(name, siblings, n=1) or difflib.get_close_matches(name, elsewhere, n=1)
    if not match:
        return f"unknown setting; allowed: {', '.join(siblings)}"
    meant = siblings.get(match[0]) or elsewhere[match[0]]
    return f"unknown setting; did you mean {meant}? Allowed: {', '.join(siblings)}"


# --- Projects and their keys ---


def _named_variables(entries: object) -> set[object]:
    """The variables that the entries of `projects:` name, as far as they can be read."""
    return {
        value
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        for value in (entry.get("public_key_env"), entry.get("secret_key_env"))
        if isinstance(value, str)
    }


def _read_projects(
    value: object, environ: Mapping[str, str], *, require_keys: bool
) -> tuple[tuple[Project, ...], list[str]]:
    """The projects with their keys, and what is wrong with them.

    Args:
        value: What stands below `projects:`; without an entry, the plain variables are the one project if one is set.
        require_keys: False: nothing about keys is a mistake.
    """
    if value is not None and not isinstance(value, list):
        return (), [f"projects: must be a list, each entry beginning with '- name: …', not {shown(value)}"]
    plain = (BASE_URL, HOST, *_with_file(PUBLIC_KEY), *_with_file(SECRET_KEY))
    if not value and not any(name in environ for name in plain):
        return (), [NO_PROJECT] if require_keys else []
    listed = value or [{"name": "default"}]
    problems = [
        f"projects[{index}]: must be a mapping beginning with 'name: …', not {shown(entry)}"
        for index, entry in enumerate(listed)
        if not isinstance(entry, dict)
    ]
    entries = {index: entry for index, entry in enumerate(listed) if isinstance(entry, dict)}
    several = len(listed) > 1
    base_url, base_url_problems = _base_url(environ)
    problems += base_url_problems + _repeated_names(entries)
    key_problems: list[str] = []
    if several:
        problems += _stray_base_url(entries, environ)
        key_problems += _stray_keys(entries, environ)
    projects: list[Project] = []
    for index, entry in entries.items():
        chosen = entry.get("base_url")
        if chosen is None or (base_url and not several and _uses_plain_keys(entry)):
            chosen = base_url or DEFAULT_BASE_URL
        public_key, secret_key, missing = _keys(entry, environ, several=several)
        key_problems += missing
        project, wrong = _read_project(f"projects[{index}]", {**entry, "base_url": chosen}, public_key, secret_key)
        problems += wrong
        projects += [project] if project else []
    return tuple(projects), problems + (key_problems if require_keys else [])


def _read_project(
    place: str, entry: Mapping[str, Any], public_key: str, secret_key: str
) -> tuple[Project | None, list[str]]:
    """One entry; None beside at least one problem."""
    in_file = {"public_key", "secret_key"} & entry.keys()
    problems = [
        f"{place}.{name}: a key must not stand in the file; put it into an environment variable, and name that "
        f"with {name}_env"
        for name in sorted(in_file)
    ]
    values = {name: value for name, value in entry.items() if name not in in_file}

    def path(loc: _Loc) -> str:
        return place + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)

    try:
        return Project(**values, public_key=public_key, secret_key=SecretStr(secret_key)), problems
    except ValidationError as error:
        return None, problems + _lines(error, path, lambda _: {name: f"{place}.{name}" for name in PROJECT_SETTINGS})


def _repeated_names(entries: Mapping[int, Mapping[str, Any]]) -> list[str]:
    first: dict[str, int] = {}
    problems: list[str] = []
    for index, entry in entries.items():
        name = str(entry.get("name")).strip()
        if "name" in entry and first.setdefault(name, index) != index:
            problems.append(f"projects[{index}].name: '{name}' is the name of projects[{first[name]}] already")
    return problems


def _with_file(variable: str) -> tuple[str, str]:
    return variable, f"{variable}_FILE"


def _uses_plain_keys(entry: Mapping[str, Any]) -> bool:
    names = entry.get("public_key_env", PUBLIC_KEY), entry.get("secret_key_env", SECRET_KEY)
    return names == (PUBLIC_KEY, SECRET_KEY)


def _base_url(environ: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """The API root that the environment names, if it does."""
    found: dict[str, str] = {}
    problems: list[str] = []
    for name in (BASE_URL, HOST):
        if name in environ:
            try:
                found[name] = normalise_base_url(environ[name])
            except ValueError as error:
                problems.append(f"{name}: {error}")
    if len(set(found.values())) > 1:
        problems.append(f"{BASE_URL} and {HOST} are both set and differ; keep one")
    return next(iter(found.values()), None), problems


def _stray_base_url(entries: Mapping[int, Mapping[str, Any]], environ: Mapping[str, str]) -> list[str]:
    """With several projects, an address in the environment that no entry takes."""
    return [
        f"{name} is set, but there are several projects and each has its own base_url; unset it"
        for name in (BASE_URL, HOST)
        if name in environ and all(entry.get("base_url") is not None for entry in entries.values())
    ]


def _stray_keys(entries: Mapping[int, Mapping[str, Any]], environ: Mapping[str, str]) -> list[str]:
    """With several projects, entries that name no keys, and keys in the environment that no entry names."""
    problems: list[str] = []
    for setting, variable in (("public_key_env", PUBLIC_KEY), ("secret_key_env", SECRET_KEY)):
        problems += [
            f"projects[{index}].{setting}: is missing; with several projects each names its own variable, "
            f"such as {variable}_{index + 1}"
            for index, entry in entries.items()
            if setting not in entry
        ]
        problems += [
            f"{name} is set, but there are several projects and none names it; write {setting}: {variable} "
            "in the entry it belongs to, or unset it"
            for name in _with_file(variable)
            if name in environ and not any(entry.get(setting) == variable for entry in entries.values())
        ]
    return problems


def _keys(entry: Mapping[str, Any], environ: Mapping[str, str], *, several: bool) -> tuple[str, str, list[str]]:
    """Public and secret key of an entry, empty where they are not known, and what is wrong with them."""
    try:
        public_env = variable_name(entry.get("public_key_env", None if several else PUBLIC_KEY))
        secret_env = variable_name(entry.get("secret_key_env", None if several else SECRET_KEY))
    except ValueError:
        return "", "", []  # said where the entry is checked
    public_key, problems = _key(environ, public_env)
    secret_key, more = _key(environ, secret_env)
    problems += more
    if not problems and not (public_key or secret_key):
        if _uses_plain_keys(entry) and BASE_URL not in environ and HOST not in environ:
            return "", "", [NO_PROJECT]
        text = f"project '{entry.get('name')}': {public_env} and {secret_env} are not set; set both to its keys"
        return "", "", [f"{text} (`langfuse-etl demo` needs no account)"]
    if not problems and not (public_key and secret_key):
        missing, other = (secret_env, public_env) if public_key else (public_env, secret_env)
        problems.append(f"{missing} is not set, but {other} is; a project needs both of its keys")
    return public_key, secret_key, problems + _swapped(public_env, public_key, secret_env, secret_key)


def _swapped(public_env: str, public_key: str, secret_env: str, secret_key: str) -> list[str]:
    public_is_secret, secret_is_public = public_key.startswith("sk-lf-"), secret_key.startswith("pk-lf-")
    if public_is_secret and secret_is_public:
        return [f"{public_env} holds a secret key and {secret_env} a public one: the two are swapped"]
    if public_is_secret:
        return [f"{public_env} holds a secret key; put the public one there, it begins with pk-lf-"]
    if secret_is_public:
        return [f"{secret_env} holds a public key; put the secret one there, it begins with sk-lf-"]
    return []


def _key(environ: Mapping[str, str], variable: str) -> tuple[str, list[str]]:
    """A key of Langfuse, registered with the log before anything else can see it."""
    key, problems = _secret(environ, variable)
    register_secret(key)
    if key and (not key.isascii() or any(char.isspace() or not char.isprintable() for char in key)):
        return "", [f"{variable}: holds spaces, line breaks or characters that no key has; copy the key again"]
    return key, problems


def _secret(environ: Mapping[str, str], variable: str) -> tuple[str, list[str]]:
    """A secret from `VARIABLE`, or from the file that `VARIABLE_FILE` names; empty if neither is set."""
    _, file_variable = _with_file(variable)
    if file_variable not in environ:
        value, source = environ.get(variable, "").strip(), variable
    elif variable in environ:
        return "", [f"{variable} and {file_variable} are both set; keep one"]
    else:
        path = Path(environ[file_variable].strip())
        source = f"{file_variable}: {path}"
        try:
            value = path.read_text("utf-8-sig").strip()
        except OSError as error:
            return "", [f"{source} cannot be read: {error.strerror or type(error).__name__}"]
        except ValueError:
            return "", [f"{source} is not text in UTF-8"]
        if not value:
            return "", [f"{source} is empty"]
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return "", [f"{source}: the quotes have become part of the value; write it without them"]
    return value, []


# --- The database's address ---


def _anchored_url(url: str, folder: Path) -> str:
    """The database address with a relative SQLite path made absolute."""
    path = url.removeprefix("sqlite:///")
    if path == url or path.startswith("/") or re.match(r"[A-Za-z]:[/\\]", path):
        return url
    return f"sqlite:///{quote(folder.as_posix(), safe='/:')}/{path}"  # SQLAlchemy decodes the path


def _register_password(url: str) -> None:
    """Hide the password of a database address, unless it is as public as its user, host or database name."""
    parts = urlsplit(url)
    public = (parts.username, parts.hostname, parts.path.strip("/"))
    for password in [parts.password, *parse_qs(parts.query).get("password", [])]:
        if password and unquote(password) not in public:
            register_secret(password)
            register_secret(unquote(password))

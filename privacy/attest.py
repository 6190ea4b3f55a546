"""python -m privacy attest: what the live database allows, against what the project says."""

import json
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from psycopg2.extensions import cursor as Cursor

from loader import errors, postgres

CONTRACT = Path(__file__).with_name("contract.txt")
MIGRATE = "run `make migrate`, which makes functions, triggers and their grants what the project says"
BY_HAND = "undo it by hand (grant, revoke, alter … owner to), as the owner or a superuser"
REBUILD = "drop it, and let dbt make its tables anew: dbt run"

# Definitions, names and intervals are written one way, whatever settings a login or the database was given.
WRITTEN_ONE_WAY = "set search_path = pg_catalog, pg_temp; set quote_all_identifiers = off; set intervalstyle = postgres"

# The group roles of deploy/bootstrap.sql, as SQL: those that logins join, and those that own things.
JOINED = "'loader', 'transformer', 'analyst', 'privacy_officer', 'monitor', 'retention'"
OWNERS = "'migrator', 'masker', 'pipeline_owner'"

# Only RDS has such names to itself, and there rdsadmin is the superuser.
OF_RDS = "(to_regrole('rdsadmin') is not null and {role}::regrole::text ~ '^rds')"

# One line for each thing that decides who may do what. contract.txt has the lines of a freshly migrated database: of
# every supported version of PostgreSQL, where a function differs. What dbt makes is in DBT below, by rule.
INVENTORY = f"""
with
ours as (
    select oid, nspname as name, nspowner, nspacl from pg_namespace
    where nspname in ('raw', 'masking', 'staging', 'analytics', 'privacy', 'extensions', 'migrations')
),
of_extensions as (select classid, objid from pg_depend where deptype = 'e'),
views_of_ours as (
    select ev_class from pg_depend
    inner join pg_rewrite on classid = 'pg_rewrite'::regclass and pg_rewrite.oid = objid
    inner join pg_class as read on refclassid = 'pg_class'::regclass and read.oid = refobjid
    where read.relnamespace in (select oid from ours where name in ('raw', 'masking', 'privacy'))
),
-- An owner's rights work in whatever schema something of theirs is, and so do those of who lends theirs for our tables.
relations as (
    select c.*, c.relnamespace::regnamespace || '.' || c.relname as name
    from pg_class as c left join ours on ours.oid = c.relnamespace
    where
        c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
        and (
            ours.name in ('raw', 'privacy', 'migrations') or ours.name = 'masking' and c.relkind <> 'v'
            or coalesce(ours.name, 'extensions') = 'extensions' and c.relpersistence <> 't'
            and (c.relowner::regrole::text in ({OWNERS}) or c.oid in (select ev_class from views_of_ours))
        )
        and ('pg_class'::regclass, c.oid) not in (select classid, objid from of_extensions)
),
functions as (
    select p.*, p.oid::regprocedure::text as name from pg_proc as p left join ours on ours.oid = p.pronamespace
    where
        (
            ours.oid is not null or p.proowner::regrole::text in ({OWNERS})
            or p.prosecdef and coalesce(pg_get_function_sqlbody(p.oid), p.prosrc) ~* '\\m(raw|masking|privacy)\\.'
        )
        and p.proowner <> 'transformer'::regrole
        -- On Citus, dbt makes such a function for each view of the boundary (dbt_project/macros/citus.sql).
        and not (
            p.oid::regprocedure::text ~ '^masking\\.read_[a-z_]+\\(bigint,bigint\\)$'
            and to_regclass('pg_catalog.pg_dist_node') is not null
        )
        and ('pg_proc'::regclass, p.oid) not in (select classid, objid from of_extensions)
),
grants (what, owner, acl) as (
    select 'database', datdba, coalesce(datacl, acldefault('d', datdba)) from pg_database
    where datname = current_database()
    union all
    select 'schema ' || name, nspowner, coalesce(nspacl, acldefault('n', nspowner)) from ours
    union all
    select 'schema public', nspowner, coalesce(nspacl, acldefault('n', nspowner)) from pg_namespace
    where nspname = 'public'
    union all
    select
        'relation ' || name, relowner,
        coalesce(relacl, acldefault(case relkind when 'S' then 's' else 'r' end::"char", relowner))
    from relations
    union all
    select 'function ' || name, proowner, coalesce(proacl, acldefault('f', proowner)) from functions
    union all
    select 'parameter ' || parname, 10, paracl from pg_parameter_acl
    union all
    select
        format('default privileges of %s %s', defaclrole::regrole, defaclobjtype)
        || case when defaclnamespace <> 0 then format(' in %s', defaclnamespace::regnamespace) else '' end,
        defaclrole, defaclacl
    from pg_default_acl
),
by_column as (
    select
        'relation ' || relations.name as what, acl.grantee, acl.privilege_type,
        string_agg(attname, ', ' order by attname) as columns
    from relations
    inner join pg_attribute on attrelid = relations.oid
    cross join lateral aclexplode(attacl) as acl
    where acl.grantee <> relations.relowner
    group by 1, 2, 3
)
select 'database is owned by ' || datdba::regrole from pg_database where datname = current_database()
union all
select format('schema %s is owned by %s', name, nspowner::regrole) from ours
union all
select format('relation %s is owned by %s, kind %s', name, relowner::regrole, relkind)
    || case when relrowsecurity then ', row security' else '' end
    || case when relpersistence = 'u' and relkind = 'r' then ', unlogged' else '' end
from relations
union all
select concat(
    format('column %s.%s: %s', relations.name, attname, format_type(atttypid, atttypmod)),
    case when attnotnull then ' not null' end, ' default ' || pg_get_expr(adbin, adrelid),
    case when attidentity <> '' then ' generated' end, case when attstattarget = 0 then ', no statistics' end
)
from relations
inner join pg_attribute on attrelid = relations.oid and attnum > 0 and not attisdropped
left join pg_attrdef on adrelid = attrelid and adnum = attnum
where relkind in ('r', 'p')
union all
select format('index %s on %s is on an expression', indexrelid::regclass, relations.name)
from pg_index inner join relations on relations.oid = indrelid
where indexprs is not null
union all
select format('statistics %s on %s', stxname, relations.name)
from pg_statistic_ext inner join relations on relations.oid = stxrelid
union all
select format('publication %s has %s.%s', pubname, schemaname, tablename) from pg_publication_tables
where schemaname in ('raw', 'masking', 'privacy')
union all
select format(
    'function %s is owned by %s%s, %s%s %s', name, proowner::regrole, case when prosecdef then ', security definer' end,
    provolatile, proparallel, array_to_string(proconfig, ' ')
)
from functions
union all
select format('function %s has the body %s', name, md5(coalesce(pg_get_function_sqlbody(oid), prosrc))) from functions
union all
select format('view %s has the body %s', name, md5(pg_get_viewdef(oid))) from relations where relkind = 'v'
union all
select format('trigger %s, %s', pg_get_triggerdef(t.oid), t.tgenabled)
from pg_trigger as t inner join relations on relations.oid = t.tgrelid
where not t.tgisinternal
union all
select format('event trigger %s executes %s', evtname, evtfoid::regprocedure) from pg_event_trigger
where
    ('pg_event_trigger'::regclass, oid) not in (select classid, objid from of_extensions)
    and evtowner is distinct from to_regrole('rdsadmin')
union all
select format('constraint %s on %s: %s', conname, relations.name, pg_get_constraintdef(c.oid))
from pg_constraint as c inner join relations on relations.oid = c.conrelid
where c.contype in ('c', 'p', 'f', 'u', 'x')
union all
select format('policy %s on %s', polname, relations.name)
from pg_policy inner join relations on relations.oid = polrelid
union all
select format('rule %s on %s', rulename, relations.name)
from pg_rewrite inner join relations on relations.oid = ev_class
union all
select format(
    '%s: %s %s%s', what, case acl.grantee when 0 then 'PUBLIC' else acl.grantee::regrole::text end, acl.privilege_type,
    case when acl.is_grantable then ' with grant option' end
)
from grants cross join lateral aclexplode(acl) as acl
where (acl.grantee <> owner or what like 'default privileges%')
    -- a rotation that is open, which has a line of its own
    and not (what like 'function masking.carried_over(%' and acl.grantee = 'transformer'::regrole)
    and not (what like 'parameter %' and {OF_RDS.format(role="acl.grantee")})
    and not (what = 'database' and acl.grantee in (select oid from pg_roles where rolname = 'backup_user'))
union all
select format('%s: %s %s (%s)', what, grantee::regrole, privilege_type, columns) from by_column
union all
select format(
    'role %s %s', rolname,
    concat_ws(
        ' ', case when rolsuper then 'superuser' end, case when rolcreaterole then 'createrole' end,
        case when rolcreatedb then 'createdb' end, case when rolreplication then 'replication' end,
        case when rolbypassrls then 'bypassrls' end, case when rolcanlogin then 'login' else 'nologin' end
    )
)
from pg_roles
where rolname in ({JOINED}, {OWNERS})
order by 1
"""

# dbt's relations, and whatever else transformer has made: what is not as dbt makes it.
DBT = """
with
dbts as (
    select c.oid, c.relname, c.relkind, c.relowner, c.relacl, n.nspname, n.nspname || '.' || c.relname as name,
        c.relrowsecurity, c.relpersistence, c.reloptions
    from pg_class as c inner join pg_namespace as n on n.oid = c.relnamespace
    where (n.nspname in ('staging', 'analytics') or n.nspname = 'masking' and c.relkind = 'v')
        and c.relkind not in ('i', 'I', 't', 'c')
)
select format('%s belongs to %s', name, relowner::regrole) from dbts
where relowner <> case nspname when 'masking' then 'masker' else 'transformer' end::regrole
union all
select format('%s is of the kind %s', name, relkind) from dbts where relkind not in ('r', 'v')
union all
select format('%s has row security', name) from dbts where relrowsecurity
union all
select format('%s is unlogged', name) from dbts where relpersistence = 'u'
union all
select format('%s has no security_barrier', name) from dbts
where nspname = 'masking' and 'security_barrier=true' <> all(coalesce(reloptions, '{}'))
union all
select format('%s: %s %s', name, case grantee when 0 then 'PUBLIC' else grantee::regrole::text end, privilege_type)
from dbts cross join lateral aclexplode(relacl)
where
    grantee <> relowner
    and (nspname, case grantee when 0 then 'PUBLIC' else grantee::regrole::text end, privilege_type) not in (
        ('masking', 'transformer', 'SELECT'), ('masking', 'pipeline_owner', 'SELECT'),
        ('staging', 'pipeline_owner', 'SELECT'), ('staging', 'pipeline_owner', 'UPDATE'),
        ('analytics', 'analyst', 'SELECT'), ('analytics', 'privacy_officer', 'SELECT')
    )
    and not (relkind = 'v' and relname like '%\\_health' and grantee = 'monitor'::regrole and privilege_type = 'SELECT')
union all
select format('%s: %s %s on a column', name, grantee::regrole, privilege_type)
from dbts inner join pg_attribute on attrelid = dbts.oid cross join lateral aclexplode(attacl)
union all
select format('trigger %s on %s', tgname, name) from pg_trigger inner join dbts on dbts.oid = tgrelid
where not tgisinternal
union all
select format('policy %s on %s', polname, name) from pg_policy inner join dbts on dbts.oid = polrelid
union all
select format('rule %s on %s', rulename, name) from pg_rewrite inner join dbts on dbts.oid = ev_class
where rulename <> '_RETURN'
union all
select format('constraint %s on %s', conname, name) from pg_constraint inner join dbts on dbts.oid = conrelid
where contype not in ('p', 'u', 'n')
union all
select format('%s inherits', name) from pg_inherits inner join dbts on dbts.oid in (inhrelid, inhparent)
union all
select format('index %s on %s is on an expression', indexrelid::regclass, name)
from pg_index inner join dbts on dbts.oid = indrelid
where indexprs is not null or indpred is not null
union all
select format('column %s of %s is of a type, a collation or an expression of its own', attname, name)
from pg_attribute
inner join dbts on dbts.oid = attrelid
inner join pg_type on pg_type.oid = atttypid
left join pg_collation on pg_collation.oid = attcollation
where
    attnum > 0
    and (
        typnamespace <> 'pg_catalog'::regnamespace or attgenerated <> '' or collnamespace <> 'pg_catalog'::regnamespace
    )
union all
select format('statistics %s', stxname) from pg_statistic_ext where stxowner = 'transformer'::regrole
union all
select format('function %s belongs to transformer', oid::regprocedure) from pg_proc
where
    proowner = 'transformer'::regrole
    -- On Citus, such a view asks a function of its owner's (dbt_project/macros/citus.sql).
    and not (
        prosecdef and oid::regprocedure::text ~ '^analytics\\.read_[a-z_]+_health\\(bigint,bigint\\)$'
        and to_regclass('pg_catalog.pg_dist_node') is not null
    )
union all
select format('type %s belongs to transformer', oid::regtype) from pg_type
where typowner = 'transformer'::regrole and typrelid = 0 and typcategory <> 'A'
union all
select format('operator %s belongs to transformer', oid::regoperator) from pg_operator
where oprowner = 'transformer'::regrole
union all
select format('collation %s belongs to transformer', oid::regcollation) from pg_collation
where collowner = 'transformer'::regrole
order by 1
"""

# What `make migrate` has deployed (migrations/__main__.py), and what is there.
BOUNDARY = """
select format('view %s is not the one that `make migrate` deployed', coalesce(deployed.view, found.view))
from migrations.boundary as deployed
full join (
    select oid::regclass::text as view, md5(pg_get_viewdef(oid)) as definition from pg_class
    where relnamespace = 'masking'::regnamespace and relkind = 'v'
) as found on found.view = deployed.view
where found.definition is distinct from deployed.definition
order by 1
"""

# A login has the rights of its roles, and so has who is a member of that login. (Who may create roles is in many.)
MEMBERS = f"""
with
powerful as (
    select oid from pg_roles
    where
        rolname !~ '^pg_' and rolname not in ({JOINED}, {OWNERS})
        and (
            rolsuper or rolcreaterole or rolreplication or rolbypassrls
            or rolcanlogin
            and oid in (select member from pg_auth_members where roleid::regrole::text in ({JOINED}, {OWNERS}))
        )
)
select
    m.roleid::regrole::text, m.member::regrole::text, m.grantor::regrole::text, m.admin_option,
    (
        m.roleid::regrole::text in ({OWNERS}) and m.member::regrole::text <> 'migrator'
        or m.roleid in (select oid from powerful) and not {OF_RDS.format(role="m.member")}
    )
    and not (select rolsuper or rolcreaterole from pg_roles where pg_roles.oid = m.member)
    or m.roleid::regrole::text ~ '^pg_' and (
        m.member::regrole::text in ({JOINED})
        or m.roleid::regrole::text ~ '(server|all_data|signal|checkpoint|maintain|create_sub)'
        and m.member::regrole::text <> 'backup_user' and not {OF_RDS.format(role="m.member")}
    )
from pg_auth_members as m
where
    m.roleid::regrole::text in ({JOINED}, {OWNERS}) or m.roleid in (select oid from powerful)
    or m.roleid::regrole::text ~ '^pg_' and m.member::regrole::text !~ '^pg_'
order by 1, 2, 3
"""

POWERFUL = f"""
select
    rolname,
    concat_ws(
        ', ', case when rolsuper then 'superuser' end, case when rolreplication then 'replication' end,
        case when rolbypassrls then 'bypasses row security' end, case when rolcreaterole then 'creates roles' end
    ),
    oid <> 10 and not {OF_RDS.format(role="oid")} and (rolname <> 'backup_user' or rolsuper or rolcreaterole)
    -- From 16 on it creates members of the roles that it may give, as Vault does; before, of every role.
    and (rolsuper or rolreplication or rolbypassrls or current_setting('server_version_num')::integer < 160000)
    -- RDS: the master user, who stands in for a superuser there
    and not (
        not rolsuper and not rolreplication and not rolbypassrls
        and exists (
            select from pg_auth_members
            where member = pg_roles.oid and roleid = to_regrole('rds_superuser')
        )
    )
from pg_roles
where (rolsuper or rolreplication or rolbypassrls or rolcreaterole) and rolname !~ '^pg_'
order by rolname
"""

# Functions of PostgreSQL's that let one login stop the others. Only a superuser can close them (bootstrap.sql).
OPEN = """
select count(*) from pg_proc
where
    pronamespace = 'pg_catalog'::regnamespace and proname ~ '^(pg_(try_)?advisory|lo_|lowrite|loread)'
    and exists (select from aclexplode(coalesce(proacl, acldefault('f', proowner))) where grantee = 0)
"""

SETTINGS = {
    "log_statement": (("ddl", "none"), "other statements have user_ids and tokens that somebody looked for"),
    "log_parameter_max_length_on_error": (("0",), "parameters of failed statements would be in the log"),
    "debug_print_parse": (("off",), "plans show values"),
    "debug_print_rewritten": (("off",), "plans show values"),
    "debug_print_plan": (("off",), "plans show values"),
    "log_min_messages": (
        ("warning", "notice", "info", "error", "log", *(f"debug{level}" for level in range(1, 6))),
        "the log would have no copy of the audit",
    ),
    "pgaudit.log_parameter": (("off", None), "it logs what functions were called with"),
    "auto_explain.log_nested_statements": (("off", None), "it logs what functions were called with"),
    "session_replication_role": (("origin",), "triggers do not fire"),
    "standard_conforming_strings": (("on",), "migrations and dbt refuse to work with other backslashes"),
    "default_transaction_isolation": (("read committed",), "loads and dbt refuse to work with another level"),
}

# A publication limits what pgoutput sends, and no other plugin.
SLOTS = """
select format('the replication slot %s (%s) gets every change in this database', slot_name, plugin)
from pg_replication_slots
where database = current_database() and plugin <> 'pgoutput'
order by 1
"""

# What a login gets that is not this one, or this one tomorrow: alter role … set, alter database … set.
GIVEN = """
select
    split_part(given, '=', 1), substr(given, strpos(given, '=') + 1),
    case setrole when 0 then 'every login' else setrole::regrole::text end
    || case setdatabase when 0 then ' in every database' else ' in this database' end,
    case
        when setrole = 0 and setdatabase <> 0 then format('database %I', current_database())
        when setdatabase = 0 then 'role ' || case setrole when 0 then 'all' else setrole::regrole::text end
        else format('role %s in database %I', setrole::regrole, current_database())
    end,
    setrole::regrole = session_user::regrole
from pg_db_role_setting cross join lateral unnest(setconfig) as given
where setdatabase = 0 or setdatabase = (select oid from pg_database where datname = current_database())
order by 1, 3
"""

AGES = """
select
    (select now() - min(newest) from (select max(created_at) as newest from masking.keys group by kind) as kinds),
    (select max(created_at) from masking.keys where version > 1), (select max(purged_at) from raw.purges),
    (select max(at) from privacy.audit where action = 'person erased'), (select max(at) from privacy.audit),
    rotation_is_open, last_load_id, greatest(newest_load_id, (select max(load_id) from raw.sqs_messages))
from raw.pipeline_state
"""

RECORD = "insert into privacy.attestations (failed) values (%s)"


@dataclass(frozen=True)
class Item:
    """One line of the report."""

    kind: str
    well: bool
    finding: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f": {self.remedy}" if self.remedy and not self.well else ""
        return f"{'ok  ' if self.well else 'OFF '}  {self.kind:<12} {self.finding}{remedy}"


def inventory(cursor: Cursor) -> list[str]:
    return _column(cursor, INVENTORY)


@contextmanager
def reading() -> Iterator[Cursor]:
    """A cursor on the database of PG* that changes nothing. Raises psycopg2.Error."""
    with closing(postgres.connect("attest")) as connection, connection.cursor() as cursor:
        connection.set_session(readonly=True, isolation_level="REPEATABLE READ")
        cursor.execute(WRITTEN_ONE_WAY)
        yield cursor


def record(failed: int) -> None:
    """Keeps how many items were off, for alerts. Raises psycopg2.Error."""
    with postgres.transaction("attest") as cursor:
        cursor.execute(RECORD, [failed])


def examine(cursor: Cursor, max_key_age_days: int = 400) -> Iterator[Item]:
    """Every item. Raises psycopg2.Error."""
    expected = CONTRACT.read_text(encoding="utf-8").splitlines()
    yield from against_contract(inventory(cursor), on_citus(expected) if is_cluster(cursor) else expected)
    yield from _none(_column(cursor, BOUNDARY), "boundary", "views as `make migrate` deployed them", MIGRATE)
    yield from _none(_column(cursor, DBT), "dbt", "tables and views as dbt makes them", REBUILD)
    yield from members(cursor)
    yield from powers(cursor)
    yield from settings(cursor)
    yield from ages(cursor, max_key_age_days)


def against_contract(found: Iterable[str], expected: Iterable[str]) -> Iterator[Item]:
    """Lines that the project does not have, lines that the database does not have, or that all is the same."""
    found, expected = set(found), {line for line in expected if line and not line.startswith("#")}
    # Of a function, the contract has the body for each version of PostgreSQL: one of them is enough.
    answered = {_subject(line) for line in found if " has the body " in line or " is owned by " in line}
    missing = {line for line in expected - found if not (_is_variant(line, expected) and _subject(line) in answered)}
    for line in sorted(found - expected):
        yield Item("contract", False, f"the project does not have: {line}", _remedy(line))
    for line in sorted(missing):
        yield Item("contract", False, f"the database does not have: {line}", _remedy(line))
    if not missing and found <= expected:
        yield Item(
            "contract", True, f"{len(found)} grants, owners, functions, triggers and constraints as in the project"
        )


def is_cluster(cursor: Cursor) -> bool:
    return _column(cursor, "select to_regclass('pg_catalog.pg_dist_node') is not null") == [True] and bool(
        _column(cursor, "select 1 from pg_dist_partition where logicalrelid = to_regclass('raw.sqs_messages')")
    )


def on_citus(expected: Iterable[str]) -> Iterator[str]:
    """There, nodes connect to one another as these roles, and a distributed table has no triggers."""
    for line in expected:
        if line in {f"role {role} nologin" for role in ("transformer", "masker", "pipeline_owner")}:
            yield line.replace("nologin", "login")
        elif not (line.startswith("trigger ") and " ON raw.sqs_messages " in line):
            yield line


def _subject(line: str) -> str:
    return line.partition(" has the body ")[0].partition(" is owned by ")[0]


def _is_variant(line: str, expected: set[str]) -> bool:
    """Whether the contract has another line of this kind for the same function."""
    middle = next((each for each in (" has the body ", " is owned by ") if each in line), None)
    return bool(middle) and sum(other.startswith(_subject(line) + middle) for other in expected) > 1


def _remedy(line: str) -> str:
    return MIGRATE if line.startswith(("function", "trigger")) else BY_HAND


def _none(findings: list[str], kind: str, otherwise: str, remedy: str) -> Iterator[Item]:
    for finding in findings:
        yield Item(kind, False, finding, remedy)
    if not findings:
        yield Item(kind, True, otherwise)


def members(cursor: Cursor) -> Iterator[Item]:
    cursor.execute(MEMBERS)
    for role, member, grantor, admin, is_off in cursor.fetchall():
        finding = f"{member} is in {role}{' and may add others' if admin else ''} (granted by {grantor})"
        yield Item("members", not is_off, finding, f"revoke {role} from {member}")


NO_POWERS = "nosuperuser nocreaterole noreplication nobypassrls"


def powers(cursor: Cursor) -> Iterator[Item]:
    cursor.execute(POWERFUL)
    for role, what, is_off in cursor.fetchall():
        yield Item("powers", not is_off, f"{role}: {what}", f"alter role {role} {NO_POWERS}")
    for finding in _column(cursor, SLOTS):
        yield Item("powers", False, finding, "raw and the keys too: drop the slot, and use pgoutput with a publication")
    [closable] = _column(cursor, "select count(*) from pg_roles where rolname = 'rds_superuser'")
    [count] = _column(cursor, OPEN)
    finding = f"{count} functions for advisory locks and large objects are open to every login"
    yield Item("powers", not count or bool(closable), finding, "run deploy/bootstrap.sql as superuser")


def settings(cursor: Cursor) -> Iterator[Item]:
    for name, (wanted, reason) in SETTINGS.items():
        [value] = _column(cursor, f"select current_setting('{name}', true)")
        yield Item("settings", value in wanted, f"{name} is {value}", f"{reason}; set it to {wanted[0]}")
    cursor.execute(GIVEN)
    for name, value, whom, altered, hides in cursor.fetchall():
        wanted, reason = SETTINGS.get(name, ((value,), ""))
        if hides and name in SETTINGS:
            wanted, reason = (), "so what the server has for others is not seen here"
        if value not in wanted:
            yield Item("settings", False, f"{name} is {value} for {whom}", f"{reason}; alter {altered} reset {name}")
    cursor.execute(
        "select current_setting('ssl') = 'on', string_agg(trim(address), ', ')"
        " filter (where trim(address) not in ('localhost', '127.0.0.1', '::1'))"
        " from string_to_table(nullif(current_setting('listen_addresses'), ''), ',') as address"
    )
    tls, elsewhere = cursor.fetchone()
    finding = f"TLS is {'on' if tls else 'off'}, the server listens on {elsewhere or 'this machine alone'}"
    yield Item("settings", tls or not elsewhere, finding, "set ssl = on, and hostssl in pg_hba.conf")


def ages(cursor: Cursor, max_key_age_days: int) -> Iterator[Item]:
    cursor.execute(AGES)
    key_age, rotated, purged, erased, audited, is_open, sequence, newest = cursor.fetchone()
    if key_age is None:
        yield Item("keys", False, "masking.keys is empty", errors.RESTORE_KEYS)
    else:
        yield Item("keys", key_age.days <= max_key_age_days, f"{key_age.days} days old", "run `make rotate-key`")
    yield Item("keys", not is_open, f"a rotation is {'open' if is_open else 'not open'}", "run `make rotate-key` again")
    times = {"rotation": rotated, "purge": purged, "erasure": erased, "audit entry": audited}
    for what, at in times.items():
        yield Item("record", True, f"last {what}: {at:%Y-%m-%d %H:%M} UTC" if at else f"last {what}: none")
    yield Item(
        "sequence", sequence >= newest, f"raw.load_id_seq is at {sequence}, the newest load is {newest}",
        f"as pipeline_owner: select setval('raw.load_id_seq', {newest})",
    )  # fmt: skip


def _column(cursor: Cursor, query: str) -> list:
    cursor.execute(query)
    return [row[0] for row in cursor.fetchall()]


def to_json(items: Iterable[Item]) -> str:
    return json.dumps([asdict(item) for item in items], indent=2)

-- What a superuser (on RDS: the master user) does once per server, before `make migrate`: the roles, the database, which
-- `migrator` owns, and (where a password is given in the environment) one login for each group role. Safe to run again:
-- it adds what is missing and repairs memberships. Used alike by the local stack, docker-compose.yml and by hand:
--   PGDATABASE=logins MIGRATOR_PASSWORD=… psql -X -v ON_ERROR_STOP=1 -d postgres -f deploy/bootstrap.sql
-- It needs psql 15 or newer. PGDATABASE names the database to create; without it, `logins`. LOGIN_NAME, LOGIN_ROLE and
-- LOGIN_PASSWORD create one login more, for a person (`make login`). In production a login is often given its password,
-- or a certificate, by other means: set none here. A role that exists already, and that this file did not make, is not
-- used when it has members, attributes, objects or privileges, unless ADOPT_ROLES=1 is set.

\set ON_ERROR_STOP on
\set QUIET on
\pset tuples_only on
\pset format unaligned
set client_min_messages = warning;  -- not that a role is a member already

-- Or the passwords below stand in the server's log, also when a statement fails or is slow, and in its statistics.
select format('set %s = %L', name, value)
from (
    values
        ('log_statement', 'none'), ('log_min_error_statement', 'panic'), ('log_min_duration_statement', '-1'),
        ('log_min_duration_sample', '-1'), ('pg_stat_statements.track', 'none')
) as settings (name, value)
where has_parameter_privilege(name, 'set') \gexec

\set migrator_password ''
\set loader_user_password ''
\set transformer_user_password ''
\set analyst_user_password ''
\set privacy_officer_user_password ''
\set monitor_user_password ''
\set retention_user_password ''
\set backup_user_password ''
\set login_name ''
\set login_role ''
\set login_password ''
\set citus ''
\set adopt ''
\set database ''
\getenv migrator_password MIGRATOR_PASSWORD
\getenv loader_user_password LOADER_USER_PASSWORD
\getenv transformer_user_password TRANSFORMER_USER_PASSWORD
\getenv analyst_user_password ANALYST_USER_PASSWORD
\getenv privacy_officer_user_password PRIVACY_OFFICER_USER_PASSWORD
\getenv monitor_user_password MONITOR_USER_PASSWORD
\getenv retention_user_password RETENTION_USER_PASSWORD
\getenv backup_user_password BACKUP_USER_PASSWORD
\getenv login_name LOGIN_NAME
\getenv login_role LOGIN_ROLE
\getenv login_password LOGIN_PASSWORD
\getenv citus CITUS
\getenv adopt ADOPT_ROLES
\getenv database PGDATABASE

-- (postgres and the templates are where psql connects to, and nobody's pipeline.)
select case when :'database' in ('', 'postgres', 'template0', 'template1') then 'logins' else :'database' end as database
\gset

-- A login for a person goes to a database that is there; a mistaken name creates none.
select :'login_name' <> '' and not exists (select from pg_database where datname = :'database') as refused \gset
\if :refused
    \warn 'There is no database' :database': correct PGDATABASE, or run `make bootstrap` first.'
    -- an error is the only way for psql to end with a status of its own
    do $$ begin raise exception 'a login for a database that is not there'; end $$;
\endif

-- Group roles hold the privileges and cannot log in; logins are members of them. masker and pipeline_owner own things, and
-- only migrator can take these roles. The comment says that this file created the role.
create temporary table roles (role, comment) as
values
    ('migrator', 'masked-logins: owns the database, applies the migrations'),
    ('loader', 'masked-logins: lands messages, reads none'),
    ('transformer', 'masked-logins: dbt'),
    ('analyst', 'masked-logins: reads analytics'),
    ('privacy_officer', 'masked-logins: recovers and erases, on record'),
    ('monitor', 'masked-logins: reads counts and ages'),
    ('retention', 'masked-logins: purges what is old'),
    ('masker', 'masked-logins: owns keys and boundary'),
    ('pipeline_owner', 'masked-logins: owns raw, privacy and the schemas');

select rolsuper as is_superuser from pg_roles where rolname = current_user \gset

-- How many connections a login may have: together fewer than PostgreSQL's 100, so that none can keep the others out.
-- Change it with `alter role … connection limit`. backup_user reads whole tables, whatever policies there are, and
-- changes nothing; only a superuser can make such a login.
create temporary table logins (login, joins, password, connections) as
values
    ('migrator', null, :'migrator_password', 8),
    ('loader_user', 'loader', :'loader_user_password', 30),
    ('transformer_user', 'transformer', :'transformer_user_password', 20),
    ('analyst_user', 'analyst', :'analyst_user_password', 20),
    ('privacy_officer_user', 'privacy_officer', :'privacy_officer_user_password', 5),
    ('monitor_user', 'monitor', :'monitor_user_password', 5),
    ('retention_user', 'retention', :'retention_user_password', 2),
    ('backup_user', 'pg_read_all_data', case when :'is_superuser' then :'backup_user_password' else '' end, 2),
    (:'login_name', :'login_role', :'login_password', 5);
delete from logins where login = '';

-- A person's login is not one of these; or a program would have that person's role, and another password.
select count(*) > 1 as refused from (select login from logins union all select role from roles) as names (name)
where name = :'login_name' \gset
\if :refused
    \warn :login_name 'is a role of the pipeline: choose another name.'
    do $$ begin raise exception 'a person''s login with the name of a role of the pipeline'; end $$;
\endif

create temporary table done (what) as select null::text limit 0;

-- Roles belong to the whole server, and their names are common words.
create temporary table strangers as
select found.rolname, concat_ws(
    ', ',
    case when rolsuper then 'is a superuser' end,
    case when rolcreaterole then 'may create roles' end,
    case when rolcreatedb then 'may create databases' end,
    case when rolreplication then 'may replicate' end,
    case when rolbypassrls then 'bypasses row security' end,
    case when rolcanlogin then 'can log in' end,
    case when exists (select from pg_db_role_setting where setrole = found.oid) then 'has settings' end,
    (
        select string_agg(distinct case deptype when 'o' then 'owns objects' else 'has privileges' end, ', ')
        from pg_shdepend
        where refclassid = 'pg_authid'::regclass and refobjid = found.oid and deptype in ('o', 'a')
            and classid <> 'pg_auth_members'::regclass
    ),
    (
        select 'has the members ' || string_agg(member::regrole::text, ' ')
        from pg_auth_members
        where roleid = found.oid and member::regrole::text not in (select login from logins union select role from roles)
            and member::regrole::text <> current_user
    ),
    (
        select 'is a member of ' || string_agg(roleid::regrole::text, ' ')
        from pg_auth_members
        where member = found.oid and roleid::regrole::text not in (select role from roles)
    )
) as found
from pg_roles as found
where found.rolname in (select role from roles union select login from logins)
    and coalesce(shobj_description(found.oid, 'pg_authid'), '') not like 'masked-logins: %';

select count(*) > 0 and :'adopt' = '' as refused,
    string_agg(rolname || ' (' || found || ')', '; ') as strangers
from strangers where found <> '' \gset
\if :refused
    \warn 'These roles were here before, and not made for this pipeline:' :strangers
    \warn 'Nothing was changed. Rename or drop them, or set ADOPT_ROLES=1 to use them as they are.'
    do $$ begin raise exception 'roles that were here before are not used without ADOPT_ROLES=1'; end $$;
\endif

-- From PostgreSQL 16 on, CREATEROLE is not enough to change a role that somebody else made.
select count(*) > 0 as refused, string_agg(rolname, ', ' order by rolname) as others_roles, current_user as myself
from pg_roles
where rolname in (select role from roles union select login from logins)
    and not :'is_superuser' and current_setting('server_version_num')::integer >= 160000
    and not pg_has_role(current_user, oid, 'member with admin option') \gset
\if :refused
    \warn :myself 'may not administer these roles:' :others_roles
    \warn 'Nothing was changed. As superuser: grant' :others_roles 'to' :myself 'with admin option'
    do $$ begin raise exception 'roles that this login may not administer'; end $$;
\endif

insert into done select 'role ' || role from roles
where role <> 'migrator' and role not in (select rolname from pg_roles);

select format('create role %I nologin', role) from roles
where role <> 'migrator' and role not in (select rolname from pg_roles) \gexec

-- No superuser, and may create no role: on PostgreSQL 15, who may can become the server's own user.
insert into done select 'login migrator' where not exists (select from pg_roles where rolname = 'migrator');
select format('create role migrator login connection limit %s', connections) from logins
where login = 'migrator' and not exists (select from pg_roles where rolname = 'migrator') \gexec

insert into done select format('login %s, in role %s', login, joins) from logins
where joins is not null and password <> '' and login not in (select rolname from pg_roles);

select format('create role %I login connection limit %s', login, connections) from logins
where joins is not null and password <> '' and login not in (select rolname from pg_roles) \gexec

select 'alter role backup_user bypassrls replication' from logins
where login = 'backup_user' and password <> '' and :'is_superuser' \gexec

-- Not a superuser, before PostgreSQL 16: whoever may create roles administers them all, and after an upgrade none.
select format('grant %I to %I with admin option', rolname, current_user) from pg_roles
where rolname in (select role from roles union select login from logins)
    and not :'is_superuser' and current_setting('server_version_num')::integer < 160000 \gexec

select format('comment on role %I is %L', role, comment) from roles \gexec
select format('comment on role %I is %L', login, 'masked-logins: a login in the role ' || joins) from logins
where joins is not null and login in (select rolname from pg_roles) \gexec

-- Memberships, also those that a restore has lost.
select format('grant %I to %I', joins, login) from logins
where joins is not null and login in (select rolname from pg_roles) \gexec
grant masker, pipeline_owner to migrator;

-- Not a superuser, as on RDS: whoever makes a database for somebody has to be a member of them.
select format('grant migrator to %I', current_user) where not :'is_superuser' \gexec

-- Nodes of Citus connect to one another as the role that a query runs as. So these log in there, without a password,
-- which pg_hba.conf is to allow between nodes alone; and they are there before a node joins.
select format('alter role %I login', role) from unnest(array['transformer', 'masker', 'pipeline_owner']) as role
where :'citus' <> '' \gexec

-- A load uses few of Citus' connections to each worker and keeps them; by default it makes several anew for each batch,
-- which takes longer than the batch.
select format('alter role loader_user set citus.%s = %s', setting, value)
from (values ('max_adaptive_executor_pool_size', 1), ('max_cached_conns_per_worker', 4)) as settings (setting, value)
where :'citus' <> '' and exists (select from pg_roles where rolname = 'loader_user') \gexec

-- A query of an analyst's that runs away ends; so does a session that holds up the clean-up of old rows.
select format('alter role %I set %s = %L', login, settings.name, value)
from (
    values ('statement_timeout', '15min'), ('idle_in_transaction_session_timeout', '15min'), ('temp_file_limit', '8GB')
) as settings (name, value)
cross join logins
inner join pg_roles on pg_roles.rolname = login
inner join pg_settings on pg_settings.name = settings.name
where joins in ('analyst', 'privacy_officer', 'monitor') and rolconfig is null
    and (context = 'user' or :'is_superuser') \gexec

select format('alter role %I password %L', login, password) from logins
where password <> '' and login in (select rolname from pg_roles) \gexec

insert into done select format('database %s, owner migrator', :'database')
where not exists (select from pg_database where datname = :'database');

select format('create database %I owner migrator encoding ''UTF8'' template template0', :'database')
where not exists (select from pg_database where datname = :'database') \gexec

-- (The group roles may connect by migrations/0001_schemas.sql.)
select format('grant connect on database %I to backup_user', :'database') from pg_roles
where rolname = 'backup_user' and :'is_superuser' \gexec

select coalesce('Created: ' || string_agg(what, '; ') || '.', 'Everything was there already; memberships are repaired.')
from done;

-- What nobody here needs, and what lets one login stop the others: connecting to databases that are nobody's, advisory
-- locks (migrator's tool and the loads take some), large objects. Only a superuser can take that away.
\if :is_superuser
    revoke connect, temporary on database postgres, template1 from public;
    \connect :"database"
    \set QUIET on
    select format('revoke execute on function %s from public', oid::regprocedure) from pg_proc
    where pronamespace = 'pg_catalog'::regnamespace and proname ~ '^(pg_(try_)?advisory|lo_|lowrite|loread)' \gexec
    select format('grant execute on function %s to migrator, pipeline_owner', oid::regprocedure) from pg_proc
    where pronamespace = 'pg_catalog'::regnamespace and proname ~ '^pg_(try_)?advisory' \gexec
    -- On Citus, what moves shards, runs commands on other nodes or (worker_split_copy in 13.2) ends the server.
    select 'create extension if not exists citus' from pg_available_extensions
    where name = 'citus' and :'citus' <> '' \gexec
    select format('revoke execute on function %s from public', pg_proc.oid::regprocedure)
    from pg_extension
    inner join pg_depend on refclassid = 'pg_extension'::regclass and refobjid = pg_extension.oid and deptype = 'e'
    inner join pg_proc on classid = 'pg_proc'::regclass and objid = pg_proc.oid
    where extname = 'citus'
        and proname ~ '^(run_command_on|citus_run|master_run|worker_split|worker_copy|rebalance|replicate|isolate)|shard_placement$|_split_shard|_schema_|_rebalance_|stat_tenants' \gexec
    select format('grant execute on function %s to pipeline_owner', oid::regprocedure) from pg_proc
    where pronamespace = 'pg_catalog'::regnamespace and proname in ('run_command_on_workers', 'master_run_on_worker') \gexec
\else
    \echo 'No login backup_user: only a superuser can make it. Use the snapshots of the server''s provider.'
    \echo 'Not a superuser: advisory locks, large objects and the database postgres stay open to every login (PRIVACY.md).'
\endif

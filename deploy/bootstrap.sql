-- What a superuser (on RDS: the master user) does once per server, before `make migrate`: the database, `migrator` who
-- owns it, and (where a password is given in the environment) one login for each group role. Safe to run again. Used
-- alike by the local stack, by the container in docker-compose.yml and by hand:
--   MIGRATOR_PASSWORD=… psql -X -v ON_ERROR_STOP=1 -f deploy/bootstrap.sql
-- (psql 15 or newer.) In production a login is often given its password, or a certificate, by other means: set none here.

\set ON_ERROR_STOP on

set log_statement = 'none';               -- or the passwords below stand in the server's log,
set log_min_error_statement = 'panic';    -- also when a statement fails,
set log_min_duration_statement = -1;      -- or is slow;
select 'set pg_stat_statements.track = none'  -- and in its statistics
where has_parameter_privilege('pg_stat_statements.track', 'set') \gexec

\set migrator_password ''
\set loader_user_password ''
\set transformer_user_password ''
\set analyst_user_password ''
\set privacy_officer_user_password ''
\set monitor_user_password ''
\set retention_user_password ''
\set citus ''
\getenv migrator_password MIGRATOR_PASSWORD
\getenv loader_user_password LOADER_USER_PASSWORD
\getenv transformer_user_password TRANSFORMER_USER_PASSWORD
\getenv analyst_user_password ANALYST_USER_PASSWORD
\getenv privacy_officer_user_password PRIVACY_OFFICER_USER_PASSWORD
\getenv monitor_user_password MONITOR_USER_PASSWORD
\getenv retention_user_password RETENTION_USER_PASSWORD
\getenv citus CITUS

create temporary table logins (login, joins, password) as
values
    ('migrator', null, :'migrator_password'),
    ('loader_user', 'loader', :'loader_user_password'),
    ('transformer_user', 'transformer', :'transformer_user_password'),
    ('analyst_user', 'analyst', :'analyst_user_password'),
    ('privacy_officer_user', 'privacy_officer', :'privacy_officer_user_password'),
    ('monitor_user', 'monitor', :'monitor_user_password'),
    ('retention_user', 'retention', :'retention_user_password');
grant select on logins to public;         -- read below by migrator, who sees no more than this session

-- migrator: owns the database and makes the roles; no superuser, so that a migration cannot reach past both.
select 'create role migrator login createrole'
where not exists (select from pg_roles where rolname = 'migrator') \gexec

-- Not a superuser, as on RDS: whoever gives to a role, or acts as it, has to be a member of it.
select format('grant migrator to %I', current_user) from pg_roles
where rolname = current_user and not rolsuper \gexec

select 'create database logins owner migrator encoding ''UTF8'' template template0'
where not exists (select from pg_database where datname = 'logins') \gexec

-- Made as migrator: from PostgreSQL 16 on, whoever makes a role may manage it.
set role migrator;

-- Nodes of Citus connect to one another as the role that a query runs as. So these log in there, without a password,
-- which pg_hba.conf is to allow between nodes alone; and they are there before a node joins.
create temporary table query_roles as
select role from unnest(array['transformer', 'masker', 'pipeline_owner']) as role where :'citus' <> '';

select format('create role %I nologin', role)
from (select joins as role from logins union select role from query_roles) as roles
where role is not null and not exists (select from pg_roles where rolname = role) \gexec

select format('alter role %I login', role) from query_roles \gexec

select format('grant %I to migrator', role) from query_roles where role <> 'transformer' \gexec

select format('create role %I login in role %I', login, joins) from logins
where joins is not null and password <> '' and not exists (select from pg_roles where rolname = login) \gexec

reset role;

select format('alter role %I password %L', login, password) from logins where password <> '' \gexec

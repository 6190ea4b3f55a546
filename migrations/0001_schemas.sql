-- migrate:up
-- Schemas and their owners; what PostgreSQL opens to everybody is closed before there is anything to see. The roles
-- belong to the whole server, and deploy/bootstrap.sql makes them.

do $$
begin
    execute format('revoke all on database %I from public', current_database());
    execute format(
        'grant connect on database %I to loader, transformer, analyst, privacy_officer, monitor, retention, masker, pipeline_owner',
        current_database()
    );
    -- temporary: the loader copies into such a table, `make forget` copies the person into one, and dbt builds increments
    -- in one and drafts of views as such views
    execute format('grant temporary on database %I to loader, transformer, masker, privacy_officer', current_database());
end $$;

revoke all on schema public from public;

create schema if not exists extensions;  -- the migrator's: only a schema's owner may install into it
create schema if not exists raw authorization pipeline_owner;
create schema if not exists masking authorization masker;
create schema if not exists staging authorization pipeline_owner;
create schema if not exists analytics authorization pipeline_owner;
create schema if not exists privacy authorization pipeline_owner;

create extension if not exists pgcrypto schema extensions;

do $$
begin
    if to_regprocedure('extensions.hmac(bytea, bytea, text)') is null then
        raise exception 'pgcrypto is installed in another schema'
            using hint = 'alter extension pgcrypto set schema extensions';
    end if;
end $$;

grant usage on schema extensions to masker, pipeline_owner;

-- As migrator, who is a member of both owners: on a worker of Citus, another role would not see these schemas yet.
alter default privileges for role pipeline_owner, masker revoke execute on functions from public;

-- loader lands, masker reads what landed, transformer sees ids and counts.
grant usage on schema raw to loader, masker, transformer;
-- transformer builds; the others read what is built. (pipeline_owner: erasure and retention look into staging.)
grant usage, create on schema staging, analytics to transformer;
grant usage on schema analytics to analyst, privacy_officer, monitor, masker;
grant usage on schema privacy to masker, transformer, privacy_officer, retention;
grant usage on schema masking to transformer, pipeline_owner;

-- migrate:down
-- none: the way back is a backup

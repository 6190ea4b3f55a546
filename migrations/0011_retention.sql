-- migrate:up
-- retention: a timer that purges raw (deploy/kubernetes, deploy/aws). It may purge, and read what analysts read, since
-- the purge does that with its rights; unlike a privacy officer it can neither recover an original nor forget a person.

do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'retention') then
        create role retention nologin;
    end if;
end $$;

grant analyst to retention;

set local role pipeline_owner;

grant usage on schema privacy to retention;
grant execute on function privacy.purge(integer), privacy.purge_raw(integer, bigint) to retention;

reset role;

-- migrate:down
-- none: the way back is a backup

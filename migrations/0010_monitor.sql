-- migrate:up
-- monitor: whoever watches the pipeline (postgres_exporter, a person on call) and needs no login of anybody's for that.
-- It reads one view of counts and ages, analytics.pipeline_health, which dbt builds and grants.

do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'monitor') then
        create role monitor nologin;
    end if;
    execute format('grant connect on database %I to monitor', current_database());
end $$;

set local role pipeline_owner;

grant usage on schema analytics to monitor;

create index on raw.loads (loaded_at);  -- the view counts a day of loads, however long the ledger is

reset role;

-- migrate:down
-- none: the way back is a backup

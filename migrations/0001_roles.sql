-- migrate:up
-- Group roles hold the privileges and cannot log in; logins join them (deploy/bootstrap.sql, or the operator).
-- masker and pipeline_owner own things and are nobody's daily role: only the migrator may take them on.
-- Roles belong to the whole cluster, so another database of it may have made them already.

do $$
declare
    role text;
begin
    foreach role in array array['loader', 'transformer', 'analyst', 'privacy_officer', 'masker', 'pipeline_owner'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = role) then
            execute format('create role %I nologin', role);
        end if;
    end loop;
end $$;

grant masker, pipeline_owner to current_user;  -- noqa: PRS

-- migrate:down
-- none: the way back is a backup

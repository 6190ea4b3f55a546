-- migrate:up
-- Anybody may have the plans of a session printed (debug_print_plan), also those of statements inside functions, and a
-- plan made for one call has that call's values in it: a body, an address, a key. A generic plan has none. PL/pgSQL
-- plans no simple expression, except after an error in the same transaction, and a body that is not JSON is one.

set local role masker;

alter function masking.carried_over(text, text, integer) set plan_cache_mode = force_generic_plan;
alter function masking.json_depth(text) set plan_cache_mode = force_generic_plan;

do $$
begin
    if current_setting('server_version_num')::integer < 160000 then
        alter function masking.parse_json(text) set plan_cache_mode = force_generic_plan;
        alter function masking.canonical_ip(text) set plan_cache_mode = force_generic_plan;
    end if;
end $$;

reset role;

-- migrate:down
-- none: the way back is a backup

-- Parsing a message, and the canonical forms of values. None of the functions knows a key, so that whoever may call
-- them learns nothing. They are IMMUTABLE, or Citus would bring the messages to the coordinator to parse them there.
-- The caller is transformer, who may create functions, operators and types of the same names: a body that is a text
-- names its search_path (`return …` needs none: its names were looked up when it was made).

set local role masker;

-- Stops a query whose key is missing: hmac with a null key would be null, in silence.
create or replace function masking.fail(message text) returns bytea
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
    raise exception '%', message;
end $$;

create or replace function masking.token(value text, key bytea) returns text
language sql stable parallel safe
return encode(extensions.hmac(convert_to(value, 'UTF8'), key, 'sha256'), 'hex');

-- What of a body may travel and be kept with a key: its hash, for the tombstone of an erased message.
create or replace function masking.digest(body text) returns text
language sql immutable parallel safe
return encode(sha256(convert_to(body, 'UTF8')), 'hex');
grant execute on function masking.digest(text) to pipeline_owner;

-- The canonical forms that a kind of masked value can have. What has the same canonical form has the same token. Null
-- for what is blank. They are frozen with the first key: a change would give old values new tokens.
-- exact: as it is.
create or replace function masking.canonical_exact(value text) returns text
language sql immutable parallel safe
return case when btrim(value, E' \t\n\r\x0B\f') <> '' then value end;

-- text: blanks at both ends and ASCII case do not count. Collation C: the same in every database, now and later; \x0B
-- and not \v, which is the letter v before PostgreSQL 16.
create or replace function masking.canonical_text(value text) returns text
language sql immutable parallel safe
return nullif(lower(btrim(value, E' \t\n\r\x0B\f') collate "C"), '');

-- identifier: as text, and a GUID is the same in braces.
create or replace function masking.canonical_identifier(value text) returns text
language sql immutable parallel safe
return case
    when strpos(value, '{') > 0 and masking.canonical_text(value) ~ '^\{[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\}$'
        then substr(masking.canonical_text(value), 2, 36)
    else masking.canonical_text(value)
end;

-- The address in what a gateway or an app may write around it: 192.0.2.1:443, [2001:db8::1]:443, fe80::1%eth0. Nothing
-- in 10.1/16, which is a network: PostgreSQL would complete it to 10.1.0.0.
create or replace function masking.bare_address(value text) returns text
language sql immutable parallel safe
return case
    when ltrim(value, '0123456789.') = '' then value  -- nearly all are so
    else regexp_replace(
        regexp_replace(
            regexp_replace(value, '^(?:\[([^][]*)\](?::[0-9]+)?|([0-9.]+):[0-9]+)((?:/[0-9]+)?)$', '\1\2\3'),
            '%[^/]*', ''
        ),
        '^[0-9]+(?:\.[0-9]+){0,2}\.?/.*', ''
    )
end;

-- An IPv4 address written as IPv6 (::ffff:192.0.2.1) is that IPv4 address.
create or replace function masking.printed_address(address inet) returns text
language sql immutable parallel safe
return case
    when host(address) like '::ffff:%.%' then substr(host(address), 8)
    else host(address)
end;

-- How deep a JSON text is nested, whatever else is wrong with it; brackets inside strings do not count.
create or replace function masking.json_depth(body text) returns bigint
language sql immutable parallel safe
set plan_cache_mode = force_generic_plan  -- a plan made for one call shows that call's values to debug_print_plan
return (
    select max(depth) from (
        select sum(case when bracket in ('[', '{') then 1 else -1 end) over (order by position) as depth
        from string_to_table(
            regexp_replace(regexp_replace(body, '"(?:[^"\\]|\\.)*"', '', 'g'), '[^][{}]', '', 'g'), null
        ) with ordinality as brackets (bracket, position)
    ) as depths
);

-- parse_json: a text as jsonb, or null when it is not JSON that PostgreSQL can hold (\u0000, a lone surrogate, a
-- number past numeric, deeper than 1,000 levels). Deep nesting would end the query with "stack depth limit exceeded",
-- which pg_input_is_valid does not catch; 4 kB cannot be that deep, so only longer bodies are measured.
-- canonical_address: an address as PostgreSQL prints it, other text after "raw:", so that no text can pass for one.
-- Both need "is this valid?" without an error. Before PostgreSQL 16 that takes an exception block, and a function with
-- one is PARALLEL UNSAFE and names the conditions: in a parallel CREATE TABLE AS it would fail for good values. Whoever
-- has plans printed (debug_print_plan) sees the values in a plan made for one call; a generic plan has none.
do $$
begin
    if current_setting('server_version_num')::integer >= 160000 then
        create or replace function masking.parse_json(body text) returns jsonb
        language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $f$
        begin
            return case
                when octet_length(body) > 4096 and masking.json_depth(body) > 1000 then null
                when pg_input_is_valid(body, 'jsonb') then body::jsonb
            end;
        end $f$;

        create or replace function masking.canonical_address(value text) returns text
        language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $f$
        declare
            bare constant text := masking.bare_address(masking.canonical_text(value));
        begin
            return case
                when pg_input_is_valid(bare, 'inet') then masking.printed_address(bare::inet)
                else 'raw:' || masking.canonical_text(value)
            end;
        end $f$;
    else
        create or replace function masking.parse_json(body text) returns jsonb
        language plpgsql immutable parallel unsafe
        set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as $f$
        begin
            if octet_length(body) > 4096 and masking.json_depth(body) > 1000 then
                return null;
            end if;
            return body::jsonb;
        exception
            when data_exception or statement_too_complex then return null;
        end $f$;

        create or replace function masking.canonical_address(value text) returns text
        language plpgsql immutable parallel unsafe
        set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as $f$
        declare
            bare constant text := masking.bare_address(masking.canonical_text(value));
        begin
            return masking.printed_address(bare::inet);
        exception
            when data_exception then return 'raw:' || masking.canonical_text(value);
        end $f$;
    end if;
end $$;

-- Whether a text looks encoded: nothing but base64, in one line or many.
create or replace function masking.is_encoded(value text) returns boolean
language sql immutable parallel safe
return value ~ '^[A-Za-z0-9+/_-]{16,}(?:[\r\n]+[A-Za-z0-9+/_-]+)*={0,2}[ \t\n\r\x0B\f]*$';

-- Whether a string in it does, which begins as base64 of JSON, gzip, zlib or Zstandard does; or is binary, so that the
-- loader wrote it in base64 (loader/sqs.py).
create or replace function masking.has_encoded_part(body text) returns boolean
language sql immutable parallel safe
return body ~ '"(?:e[wyAJN]|W[3wy]|H4sI|KLUv)[A-Za-z0-9+/_\\-]{20,}={0,2}(?:\\+[nr])*\\*"|"BinaryValue": "|"base64:';

-- What came in the place of an event: its reason for rejection, or null where nobody can tell.
create or replace function masking.not_an_event(found jsonb) returns text
language sql immutable parallel safe
return case
    when jsonb_typeof(found) = 'object' then case
        when found ?& array['Type', 'TopicArn', 'Message'] then 'in_sns_envelope'
        when found ?& array['detail-type', 'source', 'detail'] then 'in_eventbridge_envelope'
    end
    when found ->> 0 ~ '(PayloadS3Pointer|MessageS3Pointer)$' then 's3_pointer'
    when jsonb_typeof(found) = 'string' then case
        when jsonb_typeof(masking.parse_json(found #>> '{}')) in ('object', 'string') then 'json_in_a_string'
        when masking.is_encoded(found #>> '{}') then 'base64'
    end
end;

-- Whether an object has these names not itself, but in one of its members, or in JSON that is the text of one. No
-- envelope has a hundred members, and to look into a hundred thousand would take long.
create or replace function masking.is_around(found jsonb, names text[]) returns boolean
language sql immutable parallel safe
return not found ?| names and exists (
    select from jsonb_each(case when jsonb_typeof(found) = 'object' then found else '{}' end)
    with ordinality as each (name, member, place)
    where case
        when place > 100 then false
        when jsonb_typeof(member) = 'string' then masking.parse_json(member #>> '{}') ?& names
        else member ?& names
    end
);

-- An ISO 8601 time with its offset, or null.
do $$
begin
    if current_setting('server_version_num')::integer >= 160000 then
        create or replace function masking.parse_timestamp(value text) returns timestamptz
        language plpgsql immutable parallel safe
        set search_path = pg_catalog, pg_temp set datestyle = 'ISO' set timezone = 'UTC' as $f$
        begin
            return case
                when value ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]+(Z|[+-][0-9:]+)$'
                    and pg_input_is_valid(value, 'timestamptz') then value::timestamptz
            end;
        end $f$;
    else
        create or replace function masking.parse_timestamp(value text) returns timestamptz
        language plpgsql immutable parallel unsafe
        set search_path = pg_catalog, pg_temp set datestyle = 'ISO' set timezone = 'UTC' as $f$
        begin
            return case
                when value ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]+(Z|[+-][0-9:]+)$' then value::timestamptz
            end;
        exception
            when data_exception then return null;
        end $f$;
    end if;
end $$;

-- A time as text, whatever the session's time zone and style.
create or replace function masking.printed_timestamp(value timestamptz) returns text
language sql immutable strict parallel safe
set datestyle = 'ISO' set timezone = 'UTC'
return value::text;

-- Of a short value only as a word of its own, or `d` would be found in every `android`.
create or replace function masking.has_value(text_in_form text, value text) returns boolean
language sql immutable parallel safe
return strpos(text_in_form, value) > 0 and (
    length(value) >= 6
    or text_in_form collate "C" ~ (  -- where letters are those of ASCII, in whatever database
        '(?<![[:alnum:]])' || regexp_replace(value collate "C", '([^[:alnum:]])', '\\\1', 'g') || '(?![[:alnum:]])'
    )
);

-- The canonical form of each address in a text: of any four numbers between dots, and of whatever lies between colons,
-- without the letters and dots that stand next to it. What only looks like one (1.2.3.4000) is none. A window moves
-- over the parts of each run, because to cut an array takes as long as what comes before the cut. (jit: compiling this
-- takes longer than running it a thousand times. PL/pgSQL reads a backslash as the session does: the other.)
create or replace function masking.addresses_in(lower_text text) returns text[]
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
set jit = off set standard_conforming_strings = on as $$
begin
    return array(
        select address
        from (
            select array_to_string(parts, '.') as candidate
            from regexp_matches(lower_text, '[0-9]+(?:\.[0-9]+){3,}', 'g') as run (found)
            cross join lateral (
                select array_agg(part) over (order by place rows between current row and 3 following)
                from string_to_table(run.found[1], '.') with ordinality as split (part, place)
            ) as beside (parts)
            where cardinality(parts) = 4
            union
            select concat_ws(
                ':', substring(parts[1] from '[0-9a-f]{0,4}$'), array_to_string(parts[2:last - 1], ':'), tail
            )
            from regexp_matches(lower_text, '[0-9a-f.]*:[0-9a-f:.]+', 'g') as run (found)
            cross join lateral (
                select array_agg(part) over (order by place rows between current row and 8 following)
                from string_to_table(run.found[1], ':') with ordinality as split (part, place)
            ) as beside (parts)
            cross join lateral generate_series(3, cardinality(parts)) as last
            cross join lateral unnest(array[
                substring(parts[last] from '^[0-9a-f]{0,4}'), substring(parts[last] from '^[0-9]+(?:\.[0-9]+){1,3}')
            ]) as ends (tail)
            where tail is not null and (last >= 7 or '' = any(parts[1:last]))
        ) as candidates
        cross join lateral masking.canonical_address(candidate) as address
        where address not like 'raw:%'
    );
end $$;

-- Of a value that is no address, an address in it is one: of "192.0.2.1, 10.0.0.1" either.
create or replace function masking.has_address(lower_text text, canonical text) returns boolean
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
set jit = off set standard_conforming_strings = on as $$
declare
    might_have constant boolean := lower_text ~ '[0-9]\.[0-9]+\.[0-9]+\.[0-9]|:.*:';
begin
    return case
        when canonical like 'raw:%' then
            masking.has_value(lower_text, substr(canonical, 5))
            or might_have and masking.addresses_in(lower_text)
            && (select array_agg(address) from unnest(masking.addresses_in(substr(canonical, 5))) as inside (address)
                where address not in ('0.0.0.0', '::'))
        else might_have and canonical = any(masking.addresses_in(lower_text))
    end;
end $$;

-- Whether a text has a value in it, alone or among other text, in any spelling whose canonical form is that value.
-- Nearly always it has not, so what finds that out is plain SQL, which PostgreSQL writes into the query.
create or replace function masking.exposes(open_text text, canonical text, form text) returns boolean
language sql immutable parallel safe
return case form
    when 'address' then
        open_text is not null and (open_text like '%.%.%.%' or strpos(open_text, ':') > 0 or canonical like 'raw:%')
        and masking.has_address(lower(open_text collate "C"), canonical)
    when 'exact' then strpos(open_text, canonical) > 0 and masking.has_value(open_text, canonical)
    else
        strpos(lower(open_text collate "C"), canonical) > 0
        and masking.has_value(lower(open_text collate "C"), canonical)
end;

-- A view's tables are read with its owner's rights, its functions run with the caller's.
grant execute on function
    masking.fail(text), masking.token(text, bytea), masking.canonical_exact(text), masking.canonical_text(text),
    masking.canonical_identifier(text), masking.bare_address(text), masking.printed_address(inet),
    masking.canonical_address(text), masking.json_depth(text), masking.parse_json(text), masking.parse_timestamp(text),
    masking.exposes(text, text, text), masking.has_value(text, text), masking.has_address(text, text),
    masking.addresses_in(text), masking.printed_timestamp(timestamptz), masking.is_encoded(text),
    masking.has_encoded_part(text), masking.not_an_event(jsonb), masking.is_around(jsonb, text[])
to transformer, pipeline_owner;

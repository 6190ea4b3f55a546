-- For those who use what dbt publishes.

set local role pipeline_owner;

create or replace function analytics.decode_app_version(app_version integer) returns text
language sql immutable strict parallel safe
return app_version / 1000000 || '.' || app_version / 1000 % 1000 || '.' || app_version % 1000;
comment on function analytics.decode_app_version is
'The version behind user_logins.app_version, in three parts: 2003000 is 2.3.0.';
grant execute on function analytics.decode_app_version(integer) to analyst, privacy_officer, transformer, masker;

-- Under twenty messages say nothing; and where there is no week before, a tenth passes for usual.
create or replace function analytics.rejections_jumped(
    accepted bigint, rejected bigint, landed_week_before bigint, rejected_week_before bigint
) returns boolean
language sql immutable strict parallel safe
return accepted + rejected >= 20
    and rejected >= 0.05 * (accepted + rejected)
    and rejected > 3 * coalesce(rejected_week_before / nullif(landed_week_before, 0)::numeric, 0.1) * (accepted + rejected);
comment on function analytics.rejections_jumped is
'Whether more than 5 % of a day''s messages were rejected, and three times the share of the week before.';
grant execute on function analytics.rejections_jumped(bigint, bigint, bigint, bigint)
to transformer, analyst, monitor;

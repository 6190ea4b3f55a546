-- One row per user, from their first login to their last.
with

logins as (

    select * from {{ ref('user_logins') }}

),

users as (

    select
        user_id,
        count(*) as logins,
        count(distinct masked_device_id) filter (where device_id_is_placeholder is not true) as devices,
        count(distinct masked_ip) filter (where ip_is_placeholder is not true) as ips,
        min(logged_in_at) as first_seen_at,
        max(logged_in_at) as last_seen_at
    from logins
    group by user_id

)

select * from users
